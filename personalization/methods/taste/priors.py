"""What the model favours, and what the user favours.

Model label bias, log p_model(y), from one of three sources (all are pure bias shifts in log space):

    batch         log mean_i softmax_y(score_i)  over unlabelled tune questions    Zhou et al. 2024, arXiv:2309.17249
    neutral       the prompt with nothing to classify                              Holtzman et al. 2021, domain PMI
    content_free  log mean over "N/A", "[MASK]" and the empty item                 Zhao et al. 2021

User taste, pi_u(y), is the user's label frequency in the history, shrunk to the global one:

    pi_u(y) = (n_uy + kappa * pi_global(y)) / (n_u + kappa),    pi_global(y) = (n_y + 1) / (N + K)

pi_global counts the histories of the tune users, never a gold label. Mode `user` falls back to `global` for a user
without history, and `global` to `uniform` when no history exists; the mode that each question got is kept.
Cost: one pass over the score table.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from personalization.data.known import History, distinct, known_items, learned_histories
from personalization.data.records import Dataset, Question
from personalization.tasks import Task

PRIOR_MODES = ("user", "global", "uniform")

Floats = NDArray[np.floating]


def log_softmax(scores: Floats) -> NDArray[np.float64]:
    """Normalise log scores over the last axis."""
    shifted = scores.astype(np.float64) - scores.max(axis=-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)))


def log_mean_probability(scores: Floats) -> NDArray[np.float64]:
    """log of the mean over rows of the label-normalised probabilities: float [K] from [m, K]."""
    return np.asarray(np.logaddexp.reduce(log_softmax(scores), axis=0) - np.log(len(scores)))


def history_counts(dataset: Dataset) -> NDArray[np.int64]:
    """How often each label occurs in what is known of each question's user, int [n, K]; unknown labels are not."""
    histories, places = distinct([known_items(dataset.task, q) for q in dataset.questions])
    return _counted(histories, dataset.labels)[places]


def global_counts(dataset: Dataset) -> NDArray[np.int64]:
    """Label counts of all users' histories, int [K]; each user counts once, with the longest one known."""
    return np.asarray(_counted(list(learned_histories(dataset).values()), dataset.labels).sum(axis=0), dtype=np.int64)


def _counted(histories: Sequence[History], labels: Sequence[str]) -> NDArray[np.int64]:
    """Label counts of each history, int [U, K]."""
    column = {label: i for i, label in enumerate(labels)}
    counts = np.zeros((len(histories), len(labels)), dtype=np.int64)
    for row, items in enumerate(histories):
        for item in items:
            if item.label in column:
                counts[row, column[item.label]] += 1
    return counts


def most_frequent_label(task: Task, question: Question) -> str | None:
    """The label that the user gave most often; of equals the one given first. None where nothing is known."""
    counts = Counter(item.label for item in known_items(task, question) if item.label is not None)
    return counts.most_common(1)[0][0] if counts else None


def last_label(task: Task, question: Question) -> str | None:
    """The label of the user's newest item. None where nothing is known."""
    labels = [item.label for item in known_items(task, question) if item.label is not None]
    return labels[-1] if labels else None


GUESSES: dict[str, Callable[[Task, Question], str | None]] = {
    "most frequent label of the history": most_frequent_label,
    "last label of the history": last_label,
}
"""name -> (task, question) -> a label, or None where the history has none."""


def global_prior(counts: NDArray[np.int64]) -> NDArray[np.float64] | None:
    """pi_global, float [K], from the counts [K] of all histories; None when there are none."""
    if counts.sum() == 0:
        return None
    return np.asarray((counts + 1) / (counts.sum() + len(counts)))


def taste(
    counts: NDArray[np.number[Any]], global_probs: Floats | None, mode: str, kappa: float | NDArray[np.float64]
) -> tuple[NDArray[np.float64], Sequence[str]]:
    """log pi of each question, float [n, K], and the mode that each question really got.

    `counts`: history counts int [n, K]; `kappa` > 0: pseudo-counts of the global prior, of all or of each [n, 1].
    """
    n, k = counts.shape
    uniform = np.full((n, k), -np.log(k))
    if mode == "uniform":
        return uniform, ["uniform"] * n
    if global_probs is None:
        return uniform, ["uniform (fall-back)"] * n
    if mode == "global":
        return np.tile(np.log(global_probs), (n, 1)), ["global"] * n
    if mode != "user":
        raise ValueError(f"prior mode must be one of {', '.join(PRIOR_MODES)}, but got {mode!r}")
    sizes = counts.sum(axis=1, keepdims=True)
    probs = (counts + kappa * global_probs) / (sizes + kappa)
    return np.log(probs), ["user" if size else "global (fall-back)" for size in sizes[:, 0]]
