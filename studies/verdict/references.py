"""What needs no model: answers that a study must beat to be worth its model."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from objectives.classification import evaluation
from personalization.evaluation import Evaluation
from personalization.methods.taste.calibration import Calibrated
from personalization.methods.taste.priors import GUESSES, global_counts, global_prior, history_counts, taste
from studies.study import OpenStudy
from tracking.significance import paired_test

PRIOR = "prior alone"
KAPPA = 5.0
"""Pseudo-counts of the global prior in `PRIOR`."""
SEES_PROBABILITIES = frozenset({"nll", "brier", "calibration_error"})
"""Metrics that a bare label has no value of."""


class Reference(NamedTuple):
    """Answers without a model, and how many of them come from the question's own history."""

    answers: Evaluation
    answered: int


def reference_answers(opened: OpenStudy, part: str) -> dict[str, Reference]:
    """name -> its answers on a part."""
    dataset = opened.splits.part(part)
    counts = history_counts(dataset)
    log_pi, _ = taste(counts, global_prior(global_counts(opened.splits.tune)), "user", KAPPA)

    def reference(log_probs: NDArray[np.float64], answered: int) -> Reference:
        return Reference(evaluation(dataset, Calibrated(log_probs, ["reference"] * len(dataset))), answered)

    found = {PRIOR: reference(log_pi, int((counts.sum(axis=1) > 0).sum()))}
    column = {label: i for i, label in enumerate(dataset.labels)}
    for name, guess in GUESSES.items():
        chosen = np.array([column.get(guess(dataset.task, q) or "", -1) for q in dataset.questions])
        rows = np.flatnonzero(chosen >= 0)
        scores = log_pi.copy()
        scores[rows] = np.log(1e-9)
        scores[rows, chosen[rows]] = 0.0
        found[name] = reference(scores, len(rows))
    return found


def references(opened: OpenStudy, part: str) -> dict[str, float]:
    """name -> accuracy on one part."""
    return {name: found.answers.metrics["accuracy"] for name, found in reference_answers(opened, part).items()}


def against_references(opened: OpenStudy, part: str, candidate: Evaluation, metric: str) -> dict[str, dict[str, Any]]:
    """name -> the candidate's gain over it in accuracy and, where the reference has one, in the metric.

    `answered`: how many questions the reference answers from their own history.
    """
    found = {}
    for name, reference in reference_answers(opened, part).items():
        comparable = metric not in SEES_PROBABILITIES or name == PRIOR
        metrics = dict.fromkeys(["accuracy", *([metric] if comparable else [])])
        found[name] = {
            "answered": reference.answered,
            "n": len(candidate.gold),
            "tests": {wanted: paired_test(reference.answers, candidate, wanted) for wanted in metrics},
        }
    return found
