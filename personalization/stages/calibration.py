"""The last word: the model's own bias out, the user's taste in, and a temperature; see `methods.taste`.

Label bias, and with `fit: exact` also beta, gamma and tau, are learned from the tune users' scores as the stages below
leave them. Questions that an edit moves have the bias of the moved ones, those that it leaves alone that of the model
itself; where all tune questions are moved, the others' strengths are fitted to the model itself, too. With formula
`report` the reports' prior is subtracted. Cost: arithmetic; with strengths of each user's own (`per_user`, for a model
that nothing below edits or answers for) a pass over the latest items of each history, too (`methods.taste.own`).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from personalization.data.prompts import CONTENT_FREE, usual
from personalization.evaluation import gold_indices
from personalization.files import write_arrays
from personalization.methods.history.past import Past, one_each, past_of
from personalization.methods.history.pool import Pool, pooled
from personalization.methods.taste.calibration import Calibrated, PriorTables, calibrate, gathered, report_calibrate
from personalization.methods.taste.own import NAMES, Between, Items, following, helped, with_own
from personalization.methods.taste.priors import (
    global_counts,
    global_prior,
    history_counts,
    log_mean_probability,
    log_softmax,
    taste,
)
from personalization.methods.taste.solvers import RANGES, fit_nll, fit_temperature, line_optimum, plane_optimum
from personalization.stages import Stage
from personalization.stages.facts import Facts
from personalization.stages.holdings import INDEXED, Held, May, Sizes
from personalization.stages.work import KEPT, Rows, Tools, Work, asked, plain_scores, scores_of

log = logging.getLogger(__name__)

KAPPA = 5.0
"""Pseudo-counts of the global prior at the exact optima that a study starts from."""
WIDTHS = (0.05, 0.1, 0.3)
"""Kernel widths of the prior from similar items that a study starts from."""
RANKED_BY = {"encoder": "similarity", "causal": "bm25"}
"""How they are ranked there, by the kind of what embeds: a language model would read every history for it."""


class Numbers(NamedTuple):
    """What one kind of question is calibrated with. `bias`: source -> log p_model [K]."""

    bias: Mapping[str, NDArray[np.float64]]
    beta: float
    gamma: float
    tau: float


@dataclass(frozen=True)
class Learned:
    """`moved`: for questions that an edit moves, or that a head answers; `plain`: for all others.

    `global_probs` [K] of all tune histories, None without any, and the counts [K] behind it; `pool`: the items of those
    histories, where other users' items answer; `apart`: how strengths differ
    between users, of those that were tried.
    """

    plain: Numbers
    moved: Numbers
    global_probs: NDArray[np.float64] | None
    global_counts: NDArray[np.int64]
    pool: Pool | None = None
    apart: tuple[Between, ...] = ()


class Calibration(Stage):
    """z = score - beta * log p_model(y) + gamma * log pi_u(y), softmax(z / tau)."""

    earlier: Mapping[str, Any] = {
        "formula": "adjusted", "ranking": "recency", "mix": 0.0, "width": 1.0, "half_life": 1000.0, "gamma": 0.0,
        "kappa": 1.0, "source": "batch", "alpha": 1.0, "fit": "searched", "per_user": "none", "reach": 0.0,
    }  # fmt: skip

    def learn(self, params: Any, work: Work, tools: Tools) -> Learned:
        """Label bias, pooled history counts, and the exact optimum where it is wanted."""
        totals = tools.once("pooled", work.of, lambda: global_counts(work.dataset))
        probs, pool = global_prior(totals), _pool(params, work, tools)
        moved, scores = _moved(work), scores_of(work, tools)
        own = {"batch": log_mean_probability(scores[moved] if moved.any() else scores)}
        bias = own | self._neutral(work, tools)
        if not moved.any() or work.own is not None or not (work.partial or not moved.all()):
            numbers = self._numbers(params, work, tools, scores, bias, bias, probs)
            found = Learned(numbers, numbers, probs, totals, pool)
            return replace(found, apart=self._apart(params, found, work, tools))
        alone = plain_scores(work, tools)
        plain_bias = {"batch": log_mean_probability(alone)}
        numbers = self._numbers(params, work, tools, scores, bias, plain_bias, probs)
        if moved.all():  # nothing on tune tells what suits a question that is left alone, but the model itself
            plain = self._numbers(params, replace(work, edits=()), tools, alone, plain_bias, plain_bias, probs)
        else:
            plain = numbers._replace(bias=plain_bias)
        return Learned(plain, numbers, probs, totals, pool)

    def _numbers(
        self,
        params: Any,
        work: Work,
        tools: Tools,
        scores: NDArray[np.float32],
        bias: Mapping[str, NDArray[np.float64]],
        plain_bias: Mapping[str, NDArray[np.float64]],
        global_probs: NDArray[np.float64] | None,
    ) -> Numbers:
        """Bias and strengths for all questions; one that is left alone has the plain bias."""
        if params.fit != "exact" or global_probs is None:
            return Numbers(bias, params.beta, params.gamma, params.tau)
        gold = gold_indices(work.dataset)
        log_pi = _log_taste(params, work, tools, _pool(params, work, tools), global_probs)
        log_model = np.where(_moved(work)[:, None], bias["batch"], plain_bias["batch"])
        try:
            found = fit_nll(scores, log_model, log_pi, gold)
        except ValueError:  # the scores speak against the gold labels: no calibration mends them
            return Numbers(bias, 0.0, 0.0, fit_temperature(log_softmax(scores), gold))
        return Numbers(bias, float(found.beta), float(found.gamma), float(found.tau))

    def _neutral(self, work: Work, tools: Tools) -> dict[str, NDArray[np.float64]]:
        """The bias by prompts with nothing to classify; none is anybody's, so no edit moves them."""
        if work.edits or work.own is not None or work.asking.k or not len(work):
            return {}

        def make() -> dict[str, NDArray[np.float32]]:
            question = usual(work.dataset.task, work.dataset.questions)
            texts = {"neutral": [""], "content_free": CONTENT_FREE}
            blank = {name: work.asking.about(tools.scorer, work.dataset, question, own) for name, own in texts.items()}
            return {name: asked(prompts, work, tools) for name, prompts in blank.items()}

        key = None if work.of is None else (work.of, work.asking, work.spoken, work.scale)
        found = tools.once("neutral", key, make)
        return {source: log_mean_probability(table) for source, table in found.items()}

    def act(self, params: Any, learned: Learned, work: Work, tools: Tools) -> Work:
        """The answer to each question, with the prior that it really got."""
        used = replace(learned, apart=tuple(one for one in learned.apart if one.used))
        own = self._own(params, used, work, tools)
        return replace(work, answer=self._answers(params, learned, work, tools, own))

    def _answers(
        self, params: Any, learned: Learned, work: Work, tools: Tools, own: Mapping[str, NDArray[np.float64]]
    ) -> Calibrated:
        """Of questions with these strengths of their users' own, [n, 1] each."""
        scores, moved = scores_of(work, tools), _moved(work)
        counts = _counts(params, work, tools, learned.pool)
        parts = []
        for rows, numbers in ((np.flatnonzero(moved), learned.moved), (np.flatnonzero(~moved), learned.plain)):
            if len(rows):
                given = {name: value[rows] for name, value in own.items()}
                parts.append((rows, self._calibrated(params, learned, numbers, scores[rows], counts[rows], given)))
        return gathered(len(work), scores.shape[1], parts)

    def _calibrated(
        self,
        params: Any,
        learned: Learned,
        numbers: Numbers,
        scores: NDArray[np.float32],
        counts: NDArray[np.number[Any]],
        own: Mapping[str, NDArray[np.float64]],
    ) -> Calibrated:
        tables = _tables(learned, numbers)
        if params.formula == "report":
            given = {"alpha": params.alpha, "prior_mode": params.prior_mode}
            whole = counts.astype(np.int64)
            return report_calibrate(scores, whole, tables, beta=params.beta, tau=params.tau, **given)
        return calibrate(scores, counts, tables, **{**_strengths(params, numbers), **own})

    def _apart(self, params: Any, found: Learned, work: Work, tools: Tools) -> tuple[Between, ...]:
        """How strengths differ between the tune users, by their histories, and whether their questions gain by that."""
        names = NAMES[params.per_user]
        if not names or work.own is not None or work.edits or len(users := one_each(work.dataset)) < 2:
            return ()
        below = replace(work, dataset=users, of=None if work.of is None else (work.of, "one each"), blocks=())
        items, _, count = _past(params, found, below, tools)
        tables, strengths = _tables(found, found.plain), _strengths(params, found.plain)
        rows, gold, kept, tried = np.arange(len(work)), gold_indices(work.dataset), list[Between](), list[Between]()
        asking = [question.user_id for question in work.dataset.questions]
        for name in names:
            one = following(items, tables, strengths, kept, name, count)
            before, after = (
                self._answers(params, found, work, tools, self._own(params, replace(found, apart=given), work, tools))
                for given in (tuple(kept), (*kept, one))
            )
            lifted = after.log_probs[rows, gold] - before.log_probs[rows, gold]
            one = Between(one.name, one.centre, one.spread, *helped(lifted, asking))
            tried.append(one)
            kept += [one] if one.used else []
        return tuple(tried)

    def _own(self, params: Any, learned: Learned, work: Work, tools: Tools) -> dict[str, NDArray[np.float64]]:
        """Strengths of each question's user, [n, 1] each."""
        if not learned.apart or not len(work):
            return {}
        items, places, count = _past(params, learned, work, tools)
        strengths, tables = _strengths(params, learned.plain), _tables(learned, learned.plain)
        found = with_own(items, tables, strengths, learned.apart, count)
        return {name: value[places] for name, value in found.items()}

    def holds(self, may: May, sizes: Sizes) -> Held:
        """The answers of the latest settings; a user's items as arrays; embeddings where they are ranked by them."""
        answers = min(sizes.trials, KEPT) * sizes.questions * (16 * sizes.labels + 64)
        similar = "similar" in may["prior_mode"]
        embedded = sizes.known * sizes.width * 4 if similar and {"similarity", "mix"} & set(may["ranking"]) else 0
        return Held(embedded, answers + 3 * embedded + (sizes.known * INDEXED if similar else 0))

    def facts(self, params: Any, learned: Learned, below: Work, done: Work, tools: Tools) -> Facts:  # noqa: ARG002
        """Why no label changes; what a deployment holds of other users; the strengths that were solved for."""
        remarks = [
            f"{one.name} of each user's own: {one.gain:+.4f} nats a tune question, standard error {one.error:.4f}"
            f"{'' if one.used else '; not used'}"
            for one in learned.apart
        ]
        if learned.pool is not None:
            pool = learned.pool
            held = f"{len(pool)} items of {len(pool.users)} tune users answer other users, too; a deployment holds them"
            remarks.append(f"{held} in {pool.bytes} bytes")
        untouched = not below.edits and below.own is None and not below.asking.k
        if untouched and params.beta == 0 and params.gamma == 0 and params.fit != "exact":
            remarks.append("beta and gamma are 0: every label is the model's own")
        strengths = ("beta", "gamma", "tau") if params.fit == "exact" else ()
        solved = {f"calibration.solved_{name}": getattr(learned.moved, name) for name in strengths}
        return Facts(remarks=tuple(remarks), fields=solved)

    def starts(self, params: Any, work: Work, tools: Tools) -> list[dict[str, Any]]:
        """The optimum of NLL (convex) and of accuracy along gamma through it (exact), at kappa = 5; with the prior of
        similar items at three widths, too.

        None where there are no history labels, or where the scores speak against the gold labels.
        """
        found = self._optima(params, work, tools)
        for width in WIDTHS:
            weights = {
                "prior_mode": "similar",
                "ranking": RANKED_BY[tools.scorer.embedder.kind],
                "width": width,
                "half_life": 30.0,
            }
            found += [{**point, **weights} for point in self._optima(replace(params, **weights), work, tools)]
        return [{f"calibration.{name}": value for name, value in point.items()} for point in found]

    def solved(self, params: Any, work: Work, tools: Tools) -> Any:
        """beta, gamma, and the source of the bias, that are most accurate on the tune users, from where they are."""
        learned = self.learn(params, work, tools)
        if params.formula != "adjusted" or params.fit != "searched" or learned.global_probs is None:
            return params
        log_pi = _log_taste(params, work, tools, learned.pool, learned.global_probs)
        scores, gold, start = scores_of(work, tools), gold_indices(work.dataset), (params.beta, params.gamma)
        bias = learned.plain.bias
        found = {source: plane_optimum(scores, bias[source], log_pi, gold, start) for source in bias}
        best = max(found, key=lambda source: (found[source].accuracy, source == params.source))
        return replace(params, beta=float(found[best].beta), gamma=float(found[best].gamma), source=best)

    def _optima(self, params: Any, work: Work, tools: Tools) -> list[dict[str, Any]]:
        probs = global_prior(tools.once("pooled", work.of, lambda: global_counts(work.dataset)))
        if probs is None:
            return []
        scores, gold = scores_of(work, tools), gold_indices(work.dataset)
        log_model = log_mean_probability(scores)
        log_pi, _ = taste(_counts(params, work, tools), probs, "user", KAPPA)
        try:
            fit = fit_nll(scores, log_model, log_pi, gold)
        except ValueError as error:
            log.warning("the study starts without the exact optima: %s", error)
            return []
        raw = {"kappa": KAPPA, "prior_mode": "user", "source": "batch", "beta": fit.beta, "tau": fit.tau}
        best = line_optimum(scores - fit.beta * log_model, log_pi, gold, RANGES["gamma"])
        return [{**raw, "gamma": fit.gamma}, *([{**raw, "gamma": best.point}] if best else [])]

    def save(self, params: Any, learned: Learned, folder: Path) -> Mapping[str, Any]:  # noqa: ARG002
        """Bias and counts as arrays, strengths to be read."""
        arrays: dict[str, NDArray[Any]] = {"global_counts": learned.global_counts}
        for kind in ("plain", "moved"):
            arrays |= {f"{kind}.{source}": table for source, table in getattr(learned, kind).bias.items()}
        if learned.global_probs is not None:
            arrays["global_probs"] = learned.global_probs
        write_arrays(folder / "calibration.safetensors", arrays)
        if learned.pool is not None:
            learned.pool.save(folder)
        told = {kind: getattr(learned, kind)._replace(bias=None)._asdict() for kind in ("plain", "moved")}
        return {**told, "apart": [one._asdict() for one in learned.apart]}

    def load(self, params: Any, listed: Mapping[str, Any], folder: Path) -> Learned:
        """What was saved."""
        from safetensors.numpy import load_file

        arrays = load_file(folder / "calibration.safetensors")
        numbers = {}
        for kind in ("plain", "moved"):
            bias = {name.partition(".")[2]: t for name, t in arrays.items() if name.startswith(f"{kind}.")}
            numbers[kind] = Numbers(bias, **{n: listed[kind][n] for n in ("beta", "gamma", "tau")})
        pool = Pool.load(folder) if params.reach else None
        apart = tuple(Between(**one) for one in listed.get("apart", ()))  # configs of earlier versions know none
        if odd := [one.name for one in apart if one.name not in NAMES["all"] or one.spread < 0]:
            raise ValueError(f"apart: {odd[0]!r} is none of {', '.join(NAMES['all'])}, or its spread is negative")
        plain, moved, totals = numbers["plain"], numbers["moved"], arrays["global_counts"]
        return Learned(plain, moved, arrays.get("global_probs"), totals, pool, apart)


def resolved(params: Any, learned: Learned) -> Any:
    """The parameters with the numbers that were solved for."""
    if params.fit != "exact" or learned.global_probs is None:
        return params
    found = learned.moved
    return replace(params, beta=found.beta, gamma=found.gamma, tau=found.tau, fit="searched")


def _moved(work: Work) -> NDArray[np.bool_]:
    """Which questions are not answered by the model alone, [n]."""
    return np.ones(len(work), dtype=np.bool_) if work.own is not None else work.touched


def _tables(learned: Learned, numbers: Numbers) -> PriorTables:
    return PriorTables(dict(numbers.bias), learned.global_probs, learned.global_counts)


def _strengths(params: Any, numbers: Numbers) -> dict[str, Any]:
    """What `calibrate` is told beside scores, counts and tables."""
    source = params.source if params.source in numbers.bias else "batch"
    prior = {"kappa": params.kappa, "prior_mode": params.prior_mode, "source": source}
    return {"beta": numbers.beta, "gamma": numbers.gamma, "tau": numbers.tau, **prior}


def _past(params: Any, learned: Learned, work: Work, tools: Tools) -> tuple[Items, Rows, int]:
    """(past items, the past of each question, pasts) of a work whose model nothing edits."""

    def make() -> tuple[Past, Work]:
        past = past_of(work.dataset)
        prompts, _ = work.asking.prompts(tools.scorer, past.items)
        of = None if work.key is None else (work.key, "past")
        return past, Work(past.items, work.asking, tuple(prompts), work.spoken, of, scale=work.scale)

    past, asked_items = tools.once("past", work.key, make)
    scores = scores_of(asked_items, tools)
    counts = _counts(params, asked_items, tools, learned.pool)
    return Items(scores, counts, gold_indices(past.items), past.owners), past.places, past.total


def _pool(params: Any, work: Work, tools: Tools) -> Pool | None:
    """The items of all tune users, where they answer others."""
    if not params.reach:
        return None
    found: Pool = tools.once("pool", work.of, lambda: pooled(work.dataset, tools.scorer.embedder.kind, tools.embed))
    return found


def _counts(params: Any, work: Work, tools: Tools, pool: Pool | None = None) -> NDArray[np.number[Any]]:
    """What is known of each question's user: label counts, or weights of similar items, [n, K]; with a pool, beside
    what others made of similar items."""
    counts: NDArray[np.number[Any]]
    if params.prior_mode == "similar":
        counts = tools.histories(work).counts(params)
    else:
        counts = tools.once("counts", work.of, lambda: history_counts(work.dataset))
    if pool is None:
        return counts
    key = None if work.of is None else (work.of, id(pool), params.floor, params.near, params.kin)
    others = tools.once("others", key, lambda: pool.counts(work.dataset, tools.embed, params))
    return np.asarray(counts + params.reach * others)


def _log_taste(
    params: Any, work: Work, tools: Tools, pool: Pool | None, global_probs: NDArray[np.float64]
) -> NDArray[np.float64]:
    """log pi of each question, [n, K]."""
    mode = "user" if params.prior_mode == "similar" else params.prior_mode
    return taste(_counts(params, work, tools, pool), global_probs, mode, params.kappa)[0]
