"""Choosing one trial honestly: a shortlist by tune, a re-score on select, the simplest within one standard error."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from personalization.evaluation import Evaluation, all_metrics
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


def verdict_metric(opened: OpenStudy) -> str:
    """The metric that selection and promotion judge by: the first that the study optimises."""
    return next(iter(opened.spec.optimize))


def shortlist(opened: OpenStudy) -> list[Candidate]:
    """At most five feasible trials that differ, best on tune first, re-scored on the select users.

    Where the study judged labels only, trials with the same labels are one, and tau, which moves no label, is settled
    by NLL on tune first, unless the spec fixes it.
    """
    found: list[Candidate] = []
    seen: set[bytes] = set()
    labels_only = judges_labels_only(opened)
    for trial in ranked(finished(opened.study.get_trials(deepcopy=False)), dict(opened.spec.optimize)):
        params = settled(opened, opened.rooms.decode(trial.params))
        measured = opened.objective.evaluate(params)
        identity = (measured.predicted if labels_only else measured.log_probs).tobytes()
        if len(found) == SHORTLIST:
            break
        if identity not in seen:
            seen.add(identity)
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


def judges_labels_only(opened: OpenStudy) -> bool:
    """Whether no metric of the study sees probabilities."""
    return not {*opened.spec.optimize, *opened.spec.constraints} & PROBABILITY_METRICS


def settled(opened: OpenStudy, params: Any) -> Any:
    """The parameters with tau settled by NLL on tune, where the study judged labels only and left tau open."""
    if judges_labels_only(opened) and "tau" not in opened.spec.space:
        return opened.objective.settle(params)
    return params


def feasible_on_select(opened: OpenStudy, candidates: list[Candidate]) -> list[Candidate]:
    """The candidates that keep every constraint on the select users, too."""
    baseline = opened.objective.evaluate(opened.rooms.BASELINE, "select")
    measured = [all_metrics(candidate.select, baseline) for candidate in candidates]
    return [
        candidate
        for candidate, metrics in zip(candidates, measured, strict=True)
        if all(c.violation(metrics[c.metric]) <= 0 for c in opened.constraints)
    ]


def mean_and_error(evaluation: Evaluation, metric: str) -> tuple[float, float]:
    """Mean of a metric's question scores and its standard error, clustered by user."""
    scores = evaluation.question_scores(metric)
    totals, sizes = user_totals(evaluation, scores)
    residuals = totals - scores.mean() * sizes
    users = len(sizes)
    return float(scores.mean()), float(np.sqrt((residuals**2).sum() * users / max(users - 1, 1)) / sizes.sum())


def choose(candidates: list[Candidate], metric: str) -> Candidate:
    """The simplest candidate within one standard error of the best on select; of equals the better."""
    results = [mean_and_error(candidate.select, metric) for candidate in candidates]
    best, error = max(results)
    close = [(c, mean) for c, (mean, _) in zip(candidates, results, strict=True) if mean >= best - error]
    return min(close, key=lambda pair: (pair[0].complexity, -pair[1], pair[0].trial))[0]
