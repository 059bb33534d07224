"""Calibration of a stored score table. A trial is a little arithmetic: no forward pass.

The tune users' table is scored once, and with it the prompts for the sources of the model's label bias. The tables of
the select and confirm users are scored when promotion first asks for them; they never feed a prior.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from objectives import Report, Scorer
from personalization.data.prompts import CONTENT_FREE, WORDINGS, continuations, usual
from personalization.data.splits import Splits, user_blocks
from personalization.evaluation import Evaluation, gold_indices
from personalization.methods.taste.calibration import (
    Calibrated,
    PriorTables,
    calibrate,
    fit_nll,
    fit_temperature,
    line_optimum,
    report_calibrate,
)
from personalization.methods.taste.priors import (
    global_counts,
    global_prior,
    history_counts,
    log_mean_probability,
    log_softmax,
    taste,
)

log = logging.getLogger(__name__)

BLOCKS = 5
"""Blocks of users after each of which, but the last, a trial may be stopped."""


class _Part:
    """One split, scored."""

    def __init__(self, splits: Splits, name: str, scorer: Scorer, progress: Callable[[int, int], None] | None) -> None:
        dataset = splits.part(name)
        self.name = name
        self.dataset = dataset
        self.counts = history_counts(dataset)
        self.gold = gold_indices(dataset)
        wording = WORDINGS[scorer.kind]
        self.prompts = [wording.prompt(dataset.task, q) for q in dataset.questions]
        self.scores = scorer.label_logprobs(self.prompts, _spoken(scorer, dataset.labels), progress)
        self.question_ids = tuple(q.id for q in dataset.questions)
        self.user_ids = tuple(q.user_id for q in dataset.questions)
        self.blocks = user_blocks(self.user_ids, BLOCKS)

    def evaluation(self, calibrated: Calibrated, rows: NDArray[np.int64] | None = None) -> Evaluation:
        """The evaluation of these rows, or of all."""
        rows = np.arange(len(self.gold)) if rows is None else rows
        questions, users = ([ids[i] for i in rows] for ids in (self.question_ids, self.user_ids))
        return Evaluation(self.dataset.labels, tuple(questions), tuple(users), self.gold[rows], *calibrated)


class Calibration:
    """z = log p(y|x) - beta * log p_model(y) + gamma * log pi_u(y); see personalization.methods.taste.calibration."""

    method = "calibration"

    def __init__(self, splits: Splits, scorer: Scorer, progress: Callable[[int, int], None] | None = None) -> None:
        self._splits, self._scorer, self._progress = splits, scorer, progress
        self._parts: dict[str, _Part] = {}
        self.tables = self._prior_tables()

    def _part(self, name: str) -> _Part:
        if name not in self._parts:
            self._parts[name] = _Part(self._splits, name, self._scorer, self._progress)
        return self._parts[name]

    def _prior_tables(self) -> PriorTables:
        tune = self._part("tune")
        pooled = global_counts(tune.dataset)
        tables = {"batch": tune.scores, **self._neutral(_spoken(self._scorer, tune.dataset.labels))}
        return PriorTables(
            log_model={source: log_mean_probability(table) for source, table in tables.items()},
            global_probs=global_prior(pooled),
            global_counts=pooled,
        )

    def _neutral(self, spoken: Sequence[str]) -> dict[str, NDArray[np.float32]]:
        """Scores of labels, spoken so, for prompts with nothing to classify: the other sources of label bias."""
        tune = self._splits.tune
        about, asked = WORDINGS[self._scorer.kind].about, usual(tune.task, tune.questions)
        blank = [about(tune.task, asked, item) for item in CONTENT_FREE]
        return {
            "neutral": self._scorer.label_logprobs([about(tune.task, asked, "")], spoken),
            "content_free": self._scorer.label_logprobs(blank, spoken),
        }

    def _apply(self, part: _Part, params: Any) -> Calibrated:
        return calibrate(part.scores, part.counts, self.tables, **asdict(params))

    def evaluate(self, params: Any, part: str = "tune", report: Report | None = None) -> Evaluation:
        """Measure on one part; with `report`, first on growing blocks of its users."""
        scored = self._part(part)
        evaluation = scored.evaluation(self._apply(scored, params))
        if report is not None:
            for end in range(1, len(scored.blocks)):
                report(evaluation.only(np.concatenate(scored.blocks[:end])))
        return evaluation

    def observed(self, params: Any) -> dict[str, float]:  # noqa: ARG002
        """Nothing: the predictions say it all."""
        return {}

    def groups(self, params: Any, part: str) -> dict[str, int]:  # noqa: ARG002
        """None."""
        return {}

    def curves(self, params: Any) -> Mapping[str, Sequence[float]]:  # noqa: ARG002
        """None."""
        return {}

    def alarms(self, params: Any) -> list[str]:  # noqa: ARG002
        """None."""
        return []

    def pictures(self, params: Any) -> Mapping[str, Mapping[str, Any]]:  # noqa: ARG002
        """None."""
        return {}

    def files(self, params: Any) -> Mapping[str, bytes]:  # noqa: ARG002
        """None."""
        return {}

    def remarks(self, params: Any) -> list[str]:
        """Why no label changes."""
        still = params.beta == 0 and params.gamma == 0
        return ["beta and gamma are 0: every label is the model's own"] if still else []

    def deployment(self, params: Any) -> dict[str, Any]:
        """Method, parameters and prior tables."""
        dataset = self._splits.tune
        return {
            "method": self.method,
            "params": asdict(params),
            "task": dataset.task,
            "labels": list(dataset.labels),
            "priors": {
                "log_model": {source: _listed(table) for source, table in self.tables.log_model.items()},
                "global_probs": None if self.tables.global_probs is None else _listed(self.tables.global_probs),
                "global_counts": self.tables.global_counts.tolist(),
            },
        }

    def resolved(self, params: Any) -> Any:
        """The parameters themselves: nothing is left to a solver."""
        return params

    def learned_from_tune(self, params: Any) -> bool:  # noqa: ARG002
        """No: it learns label counts and a few numbers."""
        return False

    def settle(self, params: Any) -> Any:
        """The same parameters with the temperature that minimises NLL on tune; no label changes."""
        part = self._part("tune")
        log_probs, _ = self._apply(part, params)
        return replace(params, tau=params.tau * fit_temperature(log_probs, part.gold))

    def warm_start(self) -> list[dict[str, Any]]:
        """The optimum of NLL (convex) and of accuracy along gamma through it (exact), at kappa = 5.

        None where there are no history labels, or where the scores speak against the gold labels.
        """
        part = self._part("tune")
        return self._exact(part, part.counts)

    def _exact(self, part: _Part, counts: NDArray[np.number[Any]]) -> list[dict[str, Any]]:
        """The optima with these label counts as what is known of the users."""
        if self.tables.global_probs is None:
            return []
        log_model = self.tables.log_model["batch"]
        log_pi, _ = taste(counts, self.tables.global_probs, "user", 5.0)
        try:
            fit = fit_nll(part.scores, log_model, log_pi, part.gold)
        except ValueError as error:
            log.warning("the study starts without the exact optima: %s", error)
            return []
        raw = {"kappa": 5.0, "prior_mode": "user", "source": "batch", "beta": fit.beta, "tau": fit.tau}
        found = line_optimum(part.scores - fit.beta * log_model, log_pi, part.gold, (-0.5, 2.0))
        return [{**raw, "gamma": fit.gamma}, *([{**raw, "gamma": found.point}] if found else [])]


def solved(
    params: Any,
    scores: NDArray[np.float32],
    counts: NDArray[np.number[Any]],
    gold: NDArray[np.int64],
    tables: PriorTables,
) -> Any:
    """The parameters; where they say `fit: exact`, with the optimum of NLL on these questions for beta, gamma and tau.

    What is known of the users are label counts [n, K], or weights of similar items; the model's label bias is the batch
    one of the tables. Scores that speak against the gold labels are only cooled.
    """
    if params.fit != "exact" or tables.global_probs is None:
        return params
    mode = "user" if params.prior_mode == "similar" else params.prior_mode
    log_pi, _ = taste(counts, tables.global_probs, mode, params.kappa)
    try:
        found = fit_nll(scores, tables.log_model["batch"], log_pi, gold)
        optimum = {"beta": float(found.beta), "gamma": float(found.gamma), "tau": float(found.tau)}
    except ValueError:  # the scores speak against the gold labels: no calibration mends them
        optimum = {"beta": 0.0, "gamma": 0.0, "tau": fit_temperature(log_softmax(scores), gold)}
    return replace(params, **optimum, source="batch", fit="searched")


class ReportCalibration(Calibration):
    """The formula of the reports behind this project: a label prior subtracted, then divided by a temperature."""

    method = "report_calibration"

    def remarks(self, params: Any) -> list[str]:  # noqa: ARG002
        """None: a prior is always subtracted."""
        return []

    def _apply(self, part: _Part, params: Any) -> Calibrated:
        return report_calibrate(part.scores, part.counts, self.tables, **asdict(params))

    def warm_start(self) -> list[dict[str, Any]]:
        """None: its exact optimum is a corner of `Calibration`."""
        return []


def _spoken(scorer: Scorer, labels: Sequence[str]) -> list[str]:
    return continuations(labels, WORDINGS[scorer.kind].template["continuation"])


def _listed(table: NDArray[np.float64]) -> list[float]:
    return [float(value) for value in table]
