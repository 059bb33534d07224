"""When a trial is stopped early: pruners by name, and what a trial tells them after each block of users.

With one metric to optimise these are Optuna's pruners. They see the running value of that metric, step by step; the
Wilcoxon pruner sees the mean score of each user, the user being the step, since it compares trials on the same users;
in a training, at each evaluation of it.

Optuna's pruners take one metric. `dominated` takes several: it stops a trial whose running values were worse in every
metric, after this block and after the one before, than those of one and the same feasible trial.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence

import numpy as np
import optuna
import scipy
from optuna import pruners
from optuna.exceptions import ExperimentalWarning
from optuna.study import StudyDirection

from objectives import Report
from personalization.evaluation import Evaluation, all_metrics
from studies.auto.allocation import Z
from studies.constraints import feasible
from tracking.parts import mean_for
from tracking.significance import difference, gains_by_user

PRUNERS: dict[str, Callable[[], pruners.BasePruner]] = {
    "none": pruners.NopPruner,
    "median": pruners.MedianPruner,
    "percentile": lambda: pruners.PercentilePruner(25.0),
    "halving": pruners.SuccessiveHalvingPruner,
    "hyperband": pruners.HyperbandPruner,
    "wilcoxon": pruners.WilcoxonPruner,
    "dominated": pruners.NopPruner,
}
PATIENCE = 2
"""Blocks in a row after which `dominated` stops a trial."""
WORSE = 0.1
"""p-value below which `wilcoxon` ends a training; WilcoxonPruner's own threshold."""
RUNNING = "running"
"""Trial attribute of `dominated`: the metrics after each block."""


def make_pruner(name: str) -> pruners.BasePruner:
    """A pruner by name."""
    with warnings.catch_warnings(category=ExperimentalWarning, action="ignore"):
        return PRUNERS[name]()


def watch(name: str, trial: optuna.Trial, optimize: Sequence[str], baseline: Evaluation) -> Report | None:
    """What a trial calls after each block of users, under a pruner; it raises TrialPruned to stop the trial."""
    if name == "none":
        return None
    values: list[Sequence[float | None]] = []
    told: set[int] = set()

    def report(first: Evaluation, step: int | None = None) -> None:
        now = _values(first, baseline, optimize)
        missed = (step or len(values) + 1) - len(values) - 1  # by a training that goes on after a kill
        values.extend([[None] * len(optimize)] * missed)
        values.append(now)
        if name == "dominated":
            trial.set_user_attr(RUNNING, values)
            stop = _dominated(trial, values)
        else:
            if name == "wilcoxon":
                mine = _report_users(trial, first, optimize[0], told, step or 1)
            else:
                trial.report(now[0], len(values))
            stop = trial.should_prune() if name != "wilcoxon" or step is None else _worse(trial, mine)
        if stop:
            raise optuna.TrialPruned

    return report


def outrun(rival: Evaluation | None, metric: str) -> Report | None:
    """What ends a trial that cannot beat other answers any more, by the users so far; see `studies.auto.allocation`.

    A training's held-out items are not among them, and end nothing.
    """
    if rival is None:
        return None
    mean = mean_for(metric)

    def report(first: Evaluation, step: int | None = None) -> None:  # noqa: ARG001
        theirs = same_questions(rival, first)
        if theirs is None:
            return
        sums, sizes = gains_by_user(theirs, first, mean)
        gain, error = difference(sums, np.zeros(len(sums)), sizes)
        if gain + Z * error < 0:
            raise optuna.TrialPruned

    return report


def together(*reports: Report | None) -> Report | None:
    """All of what a trial calls; None where it is nothing."""
    wanted = [report for report in reports if report is not None]

    def report(first: Evaluation, step: int | None = None) -> None:
        for own in wanted:
            own(first, step)

    return report if wanted else None


def same_questions(whole: Evaluation, asked: Evaluation) -> Evaluation | None:
    """The part of the first one that is of the other one's questions; None where it does not have them all."""
    place = {question: row for row, question in enumerate(whole.question_ids)}
    if not place.keys() >= set(asked.question_ids):
        return None
    return whole.only(np.array([place[question] for question in asked.question_ids]))


def _values(first: Evaluation, baseline: Evaluation, optimize: Sequence[str]) -> list[float]:
    """The metrics so far. Held-out items of a training have no baseline: there a gain is the accuracy itself."""
    theirs = same_questions(baseline, first)
    alone = {**first.metrics, "accuracy_gain": first.metrics["accuracy"]}
    metrics = alone if theirs is None else all_metrics(first, theirs)
    return [metrics[metric] for metric in optimize]


def _report_users(trial: optuna.Trial, first: Evaluation, metric: str, told: set[int], step: int) -> dict[int, float]:
    """Report the mean score of each user that was not told yet, in the direction of the study; all by their places.

    At each step of a training all users count anew, each to be compared with itself at the same step.
    """
    sign = 1.0 if trial.study.direction == StudyDirection.MAXIMIZE else -1.0
    scores, (names, owners) = first.question_scores(metric), first.users
    means = {(step - 1) * len(names) + i: sign * float(scores[owners == i].mean()) for i in range(len(names))}
    for place, mean in means.items():
        if place not in told:
            told.add(place)
            trial.report(mean, place)
    return means


def _worse(trial: optuna.Trial, mine: dict[int, float]) -> bool:
    """Whether the users of one evaluation are worse than the best trial's there: WilcoxonPruner's test.

    That pruner itself would take each evaluation of a user for another user.
    """
    try:
        theirs = trial.study.best_trial.intermediate_values
    except ValueError:
        return False
    difference = [value - theirs[place] for place, value in mine.items() if place in theirs]
    if len(difference) < 2:
        return False
    maximize = trial.study.direction == StudyDirection.MAXIMIZE
    test = scipy.stats.wilcoxon(difference, alternative="less" if maximize else "greater", zero_method="zsplit")
    return bool(test.pvalue < WORSE)


def _dominated(trial: optuna.Trial, values: Sequence[Sequence[float | None]]) -> bool:
    """Whether some feasible trial was better in every metric after each of the last PATIENCE blocks."""
    if len(values) < PATIENCE:
        return False
    sign = np.array([1.0 if direction == StudyDirection.MAXIMIZE else -1.0 for direction in trial.study.directions])
    mine = sign * np.array(values, dtype=float)
    for other in trial.study.get_trials(deepcopy=False):
        theirs = other.user_attrs.get(RUNNING, [])
        if feasible(other) and len(theirs) >= len(mine):
            better = sign * np.array(theirs[: len(mine)], dtype=float) > mine
            if better[-PATIENCE:].all():
                return True
    return False
