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

MEANS = ("accuracy", "nll", "brier", "mae", "rmse")
"""Metrics that are means over questions (rmse: of squares), and so can be judged question by question."""


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
        """What a metric is the mean of, larger being better, float [n]; correctness for one that is no mean.

        For rmse it is the squared error.
        """
        rows = np.arange(len(self.gold))
        if metric in ("mae", "rmse"):
            distance = np.abs(self.predicted - self.gold).astype(np.float64)
            return np.asarray(-distance if metric == "mae" else -(distance**2))
        if metric == "nll":
            return np.asarray(self.log_probs[rows, self.gold], dtype=np.float64)
        if metric == "brier":
            probs = np.exp(self.log_probs.astype(np.float64))
            return np.asarray(2 * probs[rows, self.gold] - (probs**2).sum(axis=1) - 1)
        return self.correct.astype(np.float64)


def gold_indices(dataset: Dataset) -> NDArray[np.int64]:
    """Column of each question's gold label, int [n]; DataError for a question without one."""
    column = {label: i for i, label in enumerate(dataset.labels)}
    for q in dataset.questions:
        if q.gold is None:
            raise DataError(f"question {q.id} has no gold answer; give the *_outputs.json file to evaluate")
    return np.array([column[q.gold] for q in dataset.questions if q.gold is not None], dtype=np.int64)


def changes(baseline: Evaluation, candidate: Evaluation) -> Mapping[str, float]:
    """Against the baseline on the same questions: accuracy gain, share changed, and counts helped and hurt."""
    if baseline.question_ids != candidate.question_ids:
        raise ChamtuneError("two evaluations of different questions cannot be compared")
    helped = int((~baseline.correct & candidate.correct).sum())
    hurt = int((baseline.correct & ~candidate.correct).sum())
    return {
        "accuracy_gain": (helped - hurt) / len(baseline.gold),
        "changed_rate": float((baseline.predicted != candidate.predicted).mean()),
        "helped": float(helped),
        "hurt": float(hurt),
    }


def all_metrics(evaluation: Evaluation, baseline: Evaluation) -> dict[str, float]:
    """The evaluation's own metrics and those against the baseline."""
    return {**evaluation.metrics, **changes(baseline, evaluation)}
