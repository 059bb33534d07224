"""Choosing one trial honestly: a shortlist by tune, a re-score on select, the simplest within one standard error."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from personalization.evaluation import Evaluation
from studies.study import OpenStudy, finished, ranked
from tracking.significance import user_totals

SHORTLIST = 5
PROBABILITY_METRICS = {"nll", "brier", "calibration_error"}
"""Metrics that see probabilities. A study that judges by none of them leaves the temperature to chance."""


@dataclass(frozen=True)
class Candidate:
    """A shortlisted trial, measured on the select users."""

    trial: int
    params: Any
    complexity: float
    tune_value: float
    select: Evaluation


def shortlist(opened: OpenStudy) -> list[Candidate]:
    """At most five feasible trials with distinct parameters, best on tune first, re-scored on the select users.

    Where the study judged labels only, what does not move a label is settled by NLL on tune first.
    """
    found: list[Candidate] = []
    judged = {*opened.spec.optimize, *opened.spec.constraints}
    for trial in ranked(finished(opened.study.get_trials(deepcopy=False)), dict(opened.spec.optimize)):
        params = opened.rooms.decode(trial.params)
        if not judged & PROBABILITY_METRICS:
            params = opened.objective.settle(params)
        if len(found) < SHORTLIST and all(params != other.params for other in found):
            found.append(
                Candidate(
                    trial.number,
                    params,
                    opened.rooms.complexity(params),
                    float((trial.values or [np.nan])[0]),
                    opened.objective.evaluate(params, "select"),
                )
            )
    return found


def accuracy_error(evaluation: Evaluation) -> float:
    """Standard error of the accuracy, clustered by user."""
    hits, sizes = user_totals(evaluation, evaluation.correct)
    residuals = hits - evaluation.metrics["accuracy"] * sizes
    users = len(sizes)
    return float(np.sqrt((residuals**2).sum() * users / max(users - 1, 1)) / sizes.sum())


def choose(candidates: list[Candidate]) -> Candidate:
    """The simplest candidate within one standard error of the best on select; of equals the better."""
    best = max(candidates, key=lambda c: c.select.metrics["accuracy"])
    floor = best.select.metrics["accuracy"] - accuracy_error(best.select)
    close = [c for c in candidates if c.select.metrics["accuracy"] >= floor]
    return min(close, key=lambda c: (c.complexity, -c.select.metrics["accuracy"], c.trial))
