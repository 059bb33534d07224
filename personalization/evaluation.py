"""What one trial measured: the one value that crosses the rooms.

Significance, per-user impact, figures and dashboards are all computed from it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from personalization.data.records import Dataset
from personalization.errors import ChamtuneError, DataError
from personalization.metrics import entropy_bits, label_counts, metrics_of

MEANS = ("accuracy", "accuracy_gain", "nll", "brier", "mae")
"""Metrics that are means over questions, and so can be judged question by question."""


@dataclass(frozen=True)
class Evaluation:
    """Predictions of n questions over K labels.

    `log_probs`: float [n, K], normalised; `gold`: int [n], column of the gold label; `prior_modes`: the prior that each
    question really got, fall-backs included.
    """

    labels: tuple[str, ...]
    question_ids: tuple[str, ...]
    user_ids: tuple[str, ...]
    gold: NDArray[np.int64]
    log_probs: NDArray[np.floating]
    prior_modes: Sequence[str]

    def __post_init__(self) -> None:
        if not np.isfinite(self.log_probs).all():
            row = int(np.flatnonzero(~np.isfinite(self.log_probs).all(axis=1))[0])
            raise ChamtuneError(f"log-probability of question {self.question_ids[row]} is not finite")

    def only(self, rows: NDArray[np.int64]) -> Evaluation:
        """The evaluation of some questions."""
        return Evaluation(
            self.labels,
            tuple(self.question_ids[i] for i in rows),
            tuple(self.user_ids[i] for i in rows),
            self.gold[rows],
            self.log_probs[rows],
            [self.prior_modes[i] for i in rows],
        )

    @cached_property
    def predicted(self) -> NDArray[np.int64]:
        """Column of the most probable label, int [n]; the first of equals."""
        return np.asarray(self.log_probs.argmax(axis=1), dtype=np.int64)

    @cached_property
    def correct(self) -> NDArray[np.bool_]:
        """Whether each prediction is the gold label, bool [n]."""
        return np.asarray(self.predicted == self.gold)

    @cached_property
    def metrics(self) -> dict[str, float]:
        """Every metric of `metrics_of(labels)`."""
        measured = metrics_of(self.labels)
        return {name: metric.measure(self.log_probs, self.predicted, self.gold) for name, metric in measured.items()}

    @cached_property
    def users(self) -> tuple[list[str], NDArray[np.int64]]:
        """The distinct users in order of appearance, and the index of each question's user, int [n]."""
        index: dict[str, int] = {}
        rows = np.fromiter((index.setdefault(u, len(index)) for u in self.user_ids), np.int64, len(self.user_ids))
        return list(index), rows

    def gold_entropy(self) -> float:
        """Entropy of the gold labels, in bits: what `metrics["entropy"]` is to be read against."""
        return entropy_bits(label_counts(self.gold, len(self.labels)))

    def gold_top1_share(self) -> float:
        """Share of the most frequent gold label."""
        return float(label_counts(self.gold, len(self.labels)).max() / len(self.gold))

    def mode_counts(self) -> dict[str, int]:
        """How many questions got each prior mode."""
        names, counts = np.unique(np.asarray(self.prior_modes), return_counts=True)
        return {str(name): int(count) for name, count in zip(names, counts, strict=True)}

    def question_scores(self, metric: str) -> NDArray[np.float64]:
        """What one of `MEANS` is the mean of, larger being better, float [n]; ChamtuneError for any other metric."""
        rows = np.arange(len(self.gold))
        if metric in ("accuracy", "accuracy_gain"):
            return self.correct.astype(np.float64)
        if metric == "mae":
            return np.asarray(-np.abs(self.predicted - self.gold), dtype=np.float64)
        if metric == "nll":
            return np.asarray(self.log_probs[rows, self.gold], dtype=np.float64)
        if metric == "brier":
            probs = np.exp(self.log_probs.astype(np.float64))
            return np.asarray(2 * probs[rows, self.gold] - (probs**2).sum(axis=1) - 1)
        raise ChamtuneError(f"metric {metric!r} is no mean over questions; those are {', '.join(MEANS)}")


def joined(parts: Sequence[Evaluation]) -> Evaluation:
    """The evaluations of several data sets with the same labels, as one."""
    first = parts[0]
    return Evaluation(
        first.labels,
        tuple(question for part in parts for question in part.question_ids),
        tuple(user for part in parts for user in part.user_ids),
        np.concatenate([part.gold for part in parts]),
        np.concatenate([part.log_probs for part in parts]),
        [mode for part in parts for mode in part.prior_modes],
    )


def gold_indices(dataset: Dataset) -> NDArray[np.int64]:
    """Column of each question's gold label, int [n]; DataError for a question without one."""
    column = {label: i for i, label in enumerate(dataset.labels)}
    for q in dataset.questions:
        if q.gold is None:
            raise DataError(f"question {q.id} has no gold answer; give the *_outputs.json file to evaluate")
    return np.array([column[q.gold] for q in dataset.questions if q.gold is not None], dtype=np.int64)


def changed(baseline: Evaluation, candidate: Evaluation) -> Mapping[str, NDArray[np.float64]]:
    """Of each question against the baseline's answer to it, float [n]: what the metrics of a change are means of."""
    if baseline.question_ids != candidate.question_ids:
        raise ChamtuneError("two evaluations of different questions cannot be compared")
    helped = (~baseline.correct & candidate.correct).astype(np.float64)
    hurt = (baseline.correct & ~candidate.correct).astype(np.float64)
    return {
        "accuracy_gain": helped - hurt,
        "changed_rate": (baseline.predicted != candidate.predicted).astype(np.float64),
        "helped": helped,
        "hurt": hurt,
    }


def changes(baseline: Evaluation, candidate: Evaluation) -> Mapping[str, float]:
    """Against the baseline on the same questions: accuracy gain, and shares of answers changed, helped and hurt."""
    return {name: float(values.mean()) for name, values in changed(baseline, candidate).items()}


def all_metrics(evaluation: Evaluation, baseline: Evaluation) -> dict[str, float]:
    """The evaluation's own metrics and those against the baseline."""
    return {**evaluation.metrics, **changes(baseline, evaluation)}
