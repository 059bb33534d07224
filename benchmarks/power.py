"""How much of a real gain does promotion deploy, and how often is nothing deployed? The last line printed is JSON.

    python benchmarks/power.py [--data LAMP_FOLDER --model FOLDER] [--splits 150] [--head-splits 30] [--only ROW]
        [--shares 50/10/40 ...]

Users are drawn from a pool and dealt into tune, select and confirm at random, again and again. Each time the same
settings are measured on the tune users, and each rule chooses one and tests it on its confirm users (sign flip by user,
the level of a first look). Settings are 100 random calibrations, or heads learned from the tune users' histories at
several strengths, with the users' own priors on top. Deployed gain: the mean over splits of the gain in accuracy on the
confirm users, 0 where nothing is promoted. Of promoted ones, `below_reference` is the share that a guess without a
model beats; a promotion refuses these, and it is left out here, where the rule of choosing is compared.

Rules: `before` is what chamtune did until November 2026 (50/20/30; on select, the simplest within one standard error of
the best, refused where it is no better than the baseline there). `default` is the rule of today with the method's own
shares, each of `--shares` the same rule with others: what was chosen is learned anew from tune and select users
together before it is tested. `without refit` leaves that out.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np

from personalization.backbones.cached import CachedScorer
from personalization.data.demo.world import make_world
from personalization.data.lamp import read_dataset
from personalization.data.records import Dataset
from personalization.data.splits import DEFAULT_SHARES, LEARNING_SHARES, PARTS
from personalization.evaluation import Evaluation, gold_indices, joined
from personalization.methods.adapters.heads import fit_head
from personalization.methods.history.asking import Asking, asked
from personalization.methods.history.labelled import labelled_items
from personalization.methods.taste.calibration import PriorTables, calibrate
from personalization.methods.taste.priors import global_counts, global_prior, history_counts, log_mean_probability
from studies.verdict.selection import SHORTLIST, Candidate, Shortlist, choose
from tracking.detection import spent_alpha
from tracking.significance import sign_flip, user_totals

LEVEL = spent_alpha(0.05, 1)
DRAWS = 1999
CALIBRATIONS = 100
STRENGTHS = (0.001, 0.01, 0.1)
WEIGHTS = (0.0, 0.5, 1.0)
"""Weights of the users' own priors beside a head."""
FIXED = {"tau": 1.0, "prior_mode": "user", "source": "batch"}
FOLDS = 4
BEFORE = {"tune": 0.5, "select": 0.2, "confirm": 0.3}


class Pool:
    """All users of a world, scored once."""

    def __init__(self, dataset: Dataset, model: str, cache: Path) -> None:
        self.dataset = dataset
        self.scorer = CachedScorer(model, cache)
        self.prompts = [asked(self.scorer, dataset.task, q.text) for q in dataset.questions]
        spoken = Asking().spoken(self.scorer, dataset)
        self.scores = self.scorer.label_logprobs(self.prompts, spoken)
        self.counts = history_counts(dataset)
        self.gold = gold_indices(dataset)
        self.owners = np.array([q.user_id for q in dataset.questions])
        self.users = np.unique(self.owners)
        self.most_frequent = np.where(self.counts.sum(axis=1) > 0, self.counts.argmax(axis=1), -1)

    @cached_property
    def items(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(representations, labels, users) of all labelled history items."""
        found = labelled_items(self.dataset)
        column = {label: i for i, label in enumerate(self.dataset.labels)}
        prompts = [asked(self.scorer, found.task, q.text) for q in found.questions]
        labels = np.array([column[q.gold] for q in found.questions if q.gold is not None])
        return self.represented(prompts), labels, np.array([q.user_id for q in found.questions])

    def represented(self, prompts: Sequence[str]) -> np.ndarray:
        """What a head stands on."""
        if self.scorer.kind == "encoder":
            return self.scorer.embeddings(prompts)
        return self.scorer.last_states(prompts, (self.scorer.backbone.depth - 1,))[:, 0]

    @cached_property
    def asked(self) -> np.ndarray:
        """Representations of the questions."""
        return self.represented(self.prompts)

    @cached_property
    def labels(self) -> np.ndarray:
        """Representations of the labels."""
        first, labels = self.dataset.questions[0], self.dataset.labels
        return self.represented(Asking().about(self.scorer, self.dataset, first, labels))

    def evaluation(self, rows: np.ndarray, log_probs: np.ndarray) -> Evaluation:
        """Answers to some questions, whose log-probabilities [m, K] are given."""
        ids = tuple(self.dataset.questions[i].id for i in rows)
        return Evaluation(
            self.dataset.labels, ids, tuple(self.owners[rows]), self.gold[rows], log_probs, [""] * len(rows)
        )

    def tables(self, tune: np.ndarray) -> PriorTables:
        """What calibration learns from the tune questions."""
        part = Dataset(self.dataset.task, self.dataset.labels, tuple(self.dataset.questions[i] for i in tune))
        pooled = global_counts(part)
        return PriorTables({"batch": log_mean_probability(self.scores[tune])}, global_prior(pooled), pooled)


Setting = Callable[[np.ndarray], np.ndarray]
"""Rows of questions -> log-probabilities."""


def calibrations(pool: Pool, tune: np.ndarray, rng: np.random.Generator) -> list[tuple[float, Setting]]:
    """Random calibrations, each with its complexity."""
    tables = pool.tables(tune)

    def setting(beta: float, gamma: float, kappa: float) -> Setting:
        fixed: dict[str, Any] = {"beta": beta, "gamma": gamma, "kappa": kappa, "tau": 1.0, "source": "batch"}
        return lambda rows: (
            calibrate(pool.scores[rows], pool.counts[rows], tables, prior_mode="user", **fixed).log_probs
        )

    drawn = zip(
        rng.uniform(0, 1.5, CALIBRATIONS),
        rng.uniform(-0.5, 2, CALIBRATIONS),
        np.exp(rng.uniform(np.log(0.3), np.log(50), CALIBRATIONS)),
        strict=True,
    )
    return [(3 + 0.1 * (abs(beta) + abs(gamma)), setting(beta, gamma, kappa)) for beta, gamma, kappa in drawn]


def heads(pool: Pool, tune: np.ndarray, rng: np.random.Generator) -> list[tuple[float, Setting]]:
    """Heads of the tune users' items; tune users are answered by heads that did not learn from them."""
    tables, (items, labels, owners) = pool.tables(tune), pool.items
    users = rng.permutation(np.unique(pool.owners[tune]))
    folds = [users[number::FOLDS] for number in range(FOLDS)]
    found = []
    for strength in STRENGTHS:
        answers = np.empty((len(pool.gold), len(pool.dataset.labels)))
        everybody = np.isin(owners, users)
        answers[:] = fit_head(items[everybody], labels[everybody], pool.labels, strength).log_probs(pool.asked)
        for fold in folds:
            others, own = everybody & ~np.isin(owners, fold), np.isin(pool.owners, fold)
            answers[own] = fit_head(items[others], labels[others], pool.labels, strength).log_probs(pool.asked[own])

        def setting(gamma: float, answers: np.ndarray = answers) -> Setting:
            fixed: dict[str, Any] = {"beta": 0.0, "gamma": gamma, "kappa": 5.0, "tau": 1.0, "source": "batch"}
            return lambda rows: (
                calibrate(answers[rows], pool.counts[rows], tables, prior_mode="user", **fixed).log_probs
            )

        found += [(1 + strength + gamma, setting(gamma)) for gamma in WEIGHTS]
    return found


METHODS = {"calibration": (calibrations, DEFAULT_SHARES), "head": (heads, LEARNING_SHARES)}
"""method -> its settings, and the shares that its studies have by default."""


class Parts(NamedTuple):
    """Rows of the questions of each part."""

    tune: np.ndarray
    select: np.ndarray
    confirm: np.ndarray


def dealt(pool: Pool, users: np.ndarray, shares: dict[str, float]) -> Parts:
    """Users, in their order, into parts by shares."""
    first, second = (round(end * len(users)) for end in (shares["tune"], shares["tune"] + shares["select"]))
    parts = users[:first], users[first:second], users[second:]
    return Parts(*(np.flatnonzero(np.isin(pool.owners, part)) for part in parts))


def shortlisted(pool: Pool, parts: Parts, settings: list[tuple[float, Setting]]) -> list[tuple[float, Setting]]:
    """The best on tune with other labels than those before them."""
    tune = [pool.evaluation(parts.tune, setting(parts.tune)) for _, setting in settings]
    chosen: dict[bytes, int] = {}
    for i in sorted(range(len(settings)), key=lambda i: (-tune[i].metrics["accuracy"], i)):
        chosen.setdefault(tune[i].predicted.tobytes(), i)
    return [settings[i] for i in list(chosen.values())[:SHORTLIST]]


def default_rule(pool: Pool, parts: Parts, short: list[tuple[float, Setting]]) -> Setting | None:
    """The product's own."""

    def seen(setting: Setting) -> Evaluation:
        return joined([pool.evaluation(rows, setting(rows)) for rows in (parts.tune, parts.select)])

    candidates = [Candidate(i, i, complexity, 0.0, seen(s)) for i, (complexity, s) in enumerate(short)]
    found = Shortlist(candidates, seen(lambda rows: pool.scores[rows]), ("tune", "select"))
    best = choose(found, candidates, ["accuracy"], {}, LEVEL)
    return None if best is None else short[best.trial][1]


def rule_before(pool: Pool, parts: Parts, short: list[tuple[float, Setting]]) -> Setting | None:
    """One standard error on select, and its veto."""
    rows = parts.select
    answers = [pool.evaluation(rows, setting(rows)) for _, setting in short]
    means = [evaluation.metrics["accuracy"] for evaluation in answers]
    best = answers[int(np.argmax(means))]
    sums, sizes = user_totals(best, best.correct)
    residuals = sums - max(means) * sizes
    error = np.sqrt((residuals**2).sum() * len(sizes) / max(len(sizes) - 1, 1)) / sizes.sum()
    close = [i for i, mean in enumerate(means) if mean >= max(means) - error]
    chosen = min(close, key=lambda i: (short[i][0], -means[i]))
    baseline = pool.evaluation(rows, pool.scores[rows]).metrics["accuracy"]
    return short[chosen][1] if means[chosen] > baseline else None


Choice = Callable[[Pool, Parts, list[tuple[float, Setting]]], Setting | None]
Rule = tuple[dict[str, float], Choice, bool]
"""Shares, how one of a shortlist is chosen, and whether it then learns from the select users, too."""
Outcomes = list[tuple[bool, float, bool]]
"""Of each split: whether something was promoted, its gain, and whether guessing does better."""


def rules(own: dict[str, float], others: Sequence[dict[str, float]]) -> dict[str, Rule]:
    """name -> shares and the choice, of a method with these default shares."""
    return {
        "before": (BEFORE, rule_before, False),
        "before's shares, the default's choice": (BEFORE, default_rule, False),
        "the default's shares, before's choice": (own, rule_before, False),
        "without refit": (own, default_rule, False),
        "default": (own, default_rule, True),
        **{"/".join(f"{100 * shares[part]:.0f}" for part in PARTS): (shares, default_rule, True) for shares in others},
    }


def row(pool: Pool, users: int, method: str, splits: int, others: Sequence[dict[str, float]]) -> dict[str, Any]:
    """rule -> promoted share, deployed gain, that over the rule before, share of promoted ones that a guess beats."""
    rng = np.random.default_rng(0)
    settings_of, own = METHODS[method]
    found: dict[str, Outcomes] = {name: [] for name in rules(own, others)}
    for _ in range(splits):
        drawn, seed = rng.permutation(pool.users)[:users], int(rng.integers(2**31))
        settings: dict[bytes, list[tuple[float, Setting]]] = {}

        def learned(rows: np.ndarray, seed: int = seed, settings: Any = settings) -> list[tuple[float, Setting]]:
            if (key := rows.tobytes()) not in settings:
                settings[key] = settings_of(pool, rows, np.random.default_rng(seed))
            return settings[key]

        for name, (shares, rule, refit) in rules(own, others).items():
            parts = dealt(pool, drawn, shares)
            tried = learned(parts.tune)
            setting = rule(pool, parts, shortlisted(pool, parts, tried))
            if setting is not None and refit:
                place = next(i for i, (_, one) in enumerate(tried) if one is setting)
                setting = learned(np.sort(np.concatenate([parts.tune, parts.select])))[place][1]
            found[name].append((False, 0.0, False) if setting is None else outcome(pool, parts.confirm, setting))
    before = deployed(found["before"])
    return {name: {**summary(outcomes), **compared(deployed(outcomes) - before)} for name, outcomes in found.items()}


def outcome(pool: Pool, rows: np.ndarray, setting: Setting) -> tuple[bool, float, bool]:
    """Whether a setting is promoted, its gain, and whether guessing does better."""
    before, after = pool.evaluation(rows, pool.scores[rows]), pool.evaluation(rows, setting(rows))
    differences = after.correct.astype(float) - before.correct
    p = sign_flip(user_totals(after, differences)[0], DRAWS)
    promoted = bool(differences.mean() > 0 and p < LEVEL)
    guessed = float((pool.most_frequent[rows] == pool.gold[rows]).mean())
    return promoted, float(differences.mean()), promoted and guessed > after.metrics["accuracy"]


def deployed(outcomes: Outcomes) -> np.ndarray:
    """The gain of each split; 0 where nothing is promoted."""
    return np.array([promoted * gain for promoted, gain, _ in outcomes])


def compared(differences: np.ndarray) -> dict[str, float]:
    """Over the rule before, split by split."""
    error = differences.std() / len(differences) ** 0.5
    return {"over_before": round(float(differences.mean()), 4), "paired_error": round(float(error), 4)}


def summary(outcomes: Outcomes) -> dict[str, float]:
    promoted, _, below = np.array(outcomes, dtype=float).T
    gains = deployed(outcomes)
    return {
        "promoted": round(float(promoted.mean()), 3),
        "deployed_gain": round(float(gains.mean()), 4),
        "standard_error": round(float(gains.std() / len(gains) ** 0.5), 4),
        "below_reference": round(float(below.sum() / max(promoted.sum(), 1)), 3),
    }


def rows(arguments: argparse.Namespace, cache: Path) -> dict[str, SimpleNamespace]:
    """name -> how to make the pool, users and method of each row."""
    worlds = {
        "demo, 40 users": ("demo", 40),
        "demo, 80 users": ("demo", 80),
        "demo, 150 users": ("demo", 150),
        "null, 100 users": ("demo-null", 100),
    }
    pools: dict[str, Pool] = {}

    def pool(path: str) -> Pool:
        if path not in pools:
            own = path not in ("demo", "demo-null")
            data = read_dataset(Path(path)) if own else make_world(0, null=path == "demo-null").dataset
            pools[path] = Pool(data, arguments.model if own else path, cache)
        return pools[path]

    if arguments.data:
        worlds[f"{Path(arguments.data).name}, all users"] = (arguments.data, 10**9)
    return {
        f"{world}, {method}": SimpleNamespace(pool=lambda path=path: pool(path), users=users, method=method)
        for world, (path, users) in worlds.items()
        for method in METHODS
    }


def shares_of(text: str) -> dict[str, float]:
    """From a text such as 50/10/40."""
    return dict(zip(PARTS, (float(part) / 100 for part in text.split("/")), strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", help="a folder of LaMP files, for one more world")
    parser.add_argument("--model", default="minilm", help="the model of that world")
    parser.add_argument("--splits", type=int, default=150)
    parser.add_argument("--head-splits", type=int, default=30)
    parser.add_argument("--only", default="", help="only rows whose name holds this")
    parser.add_argument("--shares", nargs="*", default=[], type=shares_of, help="further shares to try: 50/10/40 ...")
    parser.add_argument("--cache", type=Path, help="where scores are kept; default: a temporary folder")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        found = {}
        for name, wanted in rows(arguments, arguments.cache or Path(scratch)).items():
            if arguments.only in name:
                splits = arguments.head_splits if wanted.method == "head" else arguments.splits
                found[name] = row(wanted.pool(), wanted.users, wanted.method, splits, arguments.shares)
                for rule, figures in found[name].items():
                    print(f"{name}, {rule}: {figures}", flush=True)
    ratios = {
        name: round(figures["default"]["deployed_gain"] / figures["before"]["deployed_gain"], 3)
        for name, figures in found.items()
        if figures["before"]["deployed_gain"] > 0
    }
    null = [figures["default"]["promoted"] for name, figures in found.items() if "null" in name]
    print(json.dumps({"rows": found, "times_before": ratios, "false_promotions": max(null, default=None)}))


if __name__ == "__main__":
    main()
