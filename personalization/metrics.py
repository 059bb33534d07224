"""Metrics of a classifier with probabilities. numpy only.

Every metric is a function of (log-probabilities [n, K], predicted label indices [n], gold label indices [n]) and is
listed in `METRICS` with the direction in which it improves. Entropy and top-1 share describe the PREDICTED labels.
Macro-F1 averages over all K labels with 0 for a label that is neither predicted nor gold, as the LaMP scorer does.
The calibration error is the debiased squared error of the top label over 10 equal-mass bins (Kumar, Liang, Ma 2019).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]
Ints = NDArray[np.int64]
Direction = Literal["maximize", "minimize"]


def label_counts(labels: Ints, k: int) -> Ints:
    """How often each of the k labels occurs, int [k]."""
    return np.bincount(labels, minlength=k)


def entropy_bits(counts: NDArray[np.integer]) -> float:
    """Shannon entropy of a count vector, in bits."""
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log2(shares)).sum()) + 0.0


def accuracy(log_probs: Floats, predicted: Ints, gold: Ints) -> float:
    """Share of questions whose prediction is the gold label."""
    return float((predicted == gold).mean())


def macro_f1(log_probs: Floats, predicted: Ints, gold: Ints) -> float:
    """Mean over labels of F1; 0 for a label that is neither predicted nor gold."""
    k = log_probs.shape[1]
    hits = np.bincount(gold[predicted == gold], minlength=k)
    sizes = np.bincount(gold, minlength=k) + np.bincount(predicted, minlength=k)
    return float(np.divide(2 * hits, sizes, out=np.zeros(k), where=sizes > 0).mean())


def balanced_accuracy(log_probs: Floats, predicted: Ints, gold: Ints) -> float:
    """Mean over the gold labels of recall."""
    k = log_probs.shape[1]
    sizes = np.bincount(gold, minlength=k)
    hits = np.bincount(gold[predicted == gold], minlength=k)
    return float((hits[sizes > 0] / sizes[sizes > 0]).mean())


def nll(log_probs: Floats, predicted: Ints, gold: Ints) -> float:
    """Mean negative log-likelihood of the gold label, in nats."""
    return float(-log_probs[np.arange(len(gold)), gold].mean(dtype=np.float64))


def brier(log_probs: Floats, predicted: Ints, gold: Ints) -> float:
    """Mean squared distance between the probabilities and the one-hot gold label, from 0 to 2."""
    probs = np.exp(log_probs, dtype=np.float64)
    gold_probs = probs[np.arange(len(gold)), gold]
    return float(((probs**2).sum(axis=1) - 2 * gold_probs + 1).mean())


def calibration_error(log_probs: Floats, predicted: Ints, gold: Ints) -> float:
    """Debiased squared calibration error of the top label; may be slightly negative when calibration is perfect."""
    confidence = np.exp(log_probs.max(axis=1).astype(np.float64))
    correct = (predicted == gold).astype(np.float64)
    order = np.argsort(confidence, kind="stable")
    total = 0.0
    for members in np.array_split(order, min(10, max(1, len(order) // 2))):
        hit = correct[members].mean()
        noise = hit * (1 - hit) / (len(members) - 1) if len(members) > 1 else 0.0
        total += len(members) / len(order) * ((confidence[members].mean() - hit) ** 2 - noise)
    return float(total)


def entropy(log_probs: Floats, predicted: Ints, gold: Ints) -> float:
    """Entropy of the predicted label counts, in bits."""
    return entropy_bits(label_counts(predicted, log_probs.shape[1]))


def top1_share(log_probs: Floats, predicted: Ints, gold: Ints) -> float:
    """Share of the most frequently predicted label."""
    return float(label_counts(predicted, log_probs.shape[1]).max() / len(predicted))


class Metric(NamedTuple):
    """A metric and the direction in which it improves."""

    measure: Callable[[Floats, Ints, Ints], float]
    direction: Direction


def mae(log_probs: Floats, predicted: Ints, gold: Ints) -> float:
    """Mean absolute distance of prediction and gold label, for labels that are numbers in a row."""
    return float(np.abs(predicted - gold).mean())


def rmse(log_probs: Floats, predicted: Ints, gold: Ints) -> float:
    """Root of the mean squared distance of prediction and gold label, for labels that are numbers in a row."""
    return float(((predicted - gold) ** 2).mean() ** 0.5)


METRICS: dict[str, Metric] = {
    "accuracy": Metric(accuracy, "maximize"),
    "macro_f1": Metric(macro_f1, "maximize"),
    "balanced_accuracy": Metric(balanced_accuracy, "maximize"),
    "nll": Metric(nll, "minimize"),
    "brier": Metric(brier, "minimize"),
    "calibration_error": Metric(calibration_error, "minimize"),
    "entropy": Metric(entropy, "maximize"),
    "top1_share": Metric(top1_share, "minimize"),
}

ORDERED: dict[str, Metric] = {"mae": Metric(mae, "minimize"), "rmse": Metric(rmse, "minimize")}
"""Metrics of tasks whose labels are numbers in a row, as the scores 1 to 5 of LaMP-3."""


def metrics_of(labels: Sequence[str]) -> dict[str, Metric]:
    """The metrics that make sense for these labels, in the order of the table's columns."""
    numbers = [int(label) if label.isdecimal() else None for label in labels]
    row = numbers[0] is not None and numbers == list(range(numbers[0], numbers[0] + len(numbers)))
    return METRICS | ORDERED if row and len(numbers) > 2 else METRICS
