"""What needs no model: answers that a study must beat to be worth its model."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from personalization.evaluation import Evaluation, gold_indices
from personalization.methods.priors import (
    global_counts,
    global_prior,
    history_counts,
    last_label,
    most_frequent_label,
    taste,
)
from studies.study import OpenStudy
from tracking.significance import paired

PRIOR = "prior alone"
GUESSES = {"most frequent label of the history": most_frequent_label, "last label of the history": last_label}


def reference_hits(opened: OpenStudy, part: str) -> dict[str, NDArray[np.bool_]]:
    """name -> which questions of a part it answers rightly, bool [n]. Without history only the prior has an answer."""
    dataset = opened.splits.part(part)
    log_pi, _ = taste(history_counts(dataset), global_prior(global_counts(opened.splits.tune)), "user", 5.0)
    return {PRIOR: np.asarray(log_pi.argmax(axis=1) == gold_indices(dataset))} | {
        name: np.array([guess(dataset.task, q) == q.gold for q in dataset.questions]) for name, guess in GUESSES.items()
    }


def references(opened: OpenStudy, part: str) -> dict[str, float]:
    """name -> accuracy on one part."""
    return {name: float(hits.mean()) for name, hits in reference_hits(opened, part).items()}


def against_references(opened: OpenStudy, part: str, candidate: Evaluation) -> dict[str, dict[str, Any]]:
    """name -> its accuracy on one part, and the candidate's gain over it with interval and p."""
    return {
        name: {"accuracy": float(hits.mean()), **paired(hits, candidate)}
        for name, hits in reference_hits(opened, part).items()
    }
