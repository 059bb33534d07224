"""What a system costs, to be read beside what it gains."""

from __future__ import annotations

import statistics
import time
from typing import NamedTuple

from optuna.trial import TrialState

from personalization.deployment import served
from personalization.stages import chain
from personalization.stages.chain import Fitted
from search_spaces import ChainParams
from studies.carried import kept_from_elsewhere
from studies.study import OpenStudy

TIMED, TIMES = 32, 3
"""Questions that are answered to measure the cost of one, and how often; the median counts."""
LONG_S = 5.0
"""Seconds that need not be measured again."""


class Cost(NamedTuple):
    """Milliseconds a question when served, bytes that a deployment holds for each user alone, seconds of training.

    `training_s` is the wall time of the first trial whose stages below the calibration were the same, its answers on
    the tune users included: later trials find what it learned. Where that trial found adapters that another study had
    trained, it is what these took. None of a system that is no trial.
    """

    cost_ms: float
    user_bytes: int
    training_s: float | None


def cost_of(opened: OpenStudy, params: ChainParams, trial: int | None) -> Cost:
    """The cost of a trial's parameters."""
    fitted = opened.objective.fitted(params)
    training = None if trial is None else training_s(opened, trial, fitted)
    return Cost(round(cost_ms(opened, params), 2), chain.user_bytes(fitted), training)


def cost_ms(opened: OpenStudy, params: ChainParams) -> float:
    """Milliseconds to answer one question of tune users, by what would be deployed, with nothing in any store."""
    tune = opened.splits.tune
    questions = tune.questions[:TIMED]
    fitted, seconds = opened.objective.fitted(params), []
    for _ in range(TIMES):
        deployment = served({"task": tune.task, "labels": tune.labels}, fitted, opened.scorer)
        deployment.predict(tune.questions[-1:])
        opened.scorer.backbone.forget()
        started = time.perf_counter()
        deployment.predict(questions)
        seconds.append(time.perf_counter() - started)
        if seconds[-1] > LONG_S:
            break
    return 1000 * statistics.median(seconds) / len(questions)


def training_s(opened: OpenStudy, number: int, fitted: Fitted) -> float | None:
    """Seconds of the first complete trial with the stages of this one, but for the calibration, or of its adapters'
    training where that took longer; None where neither is known, as of a trial carried from another study."""
    trials = opened.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    trained = {trial.number: _trained(opened.rooms.decode(trial.params)) for trial in trials}
    first = next(trial for trial in trials if trained[trial.number] == trained[number])
    here = None if kept_from_elsewhere(first) else first.duration
    seconds = max(0.0 if here is None else here.total_seconds(), chain.training_s(fitted))
    return round(seconds, 2) or None


def _trained(params: ChainParams) -> list[tuple[str, object]]:
    return [(name, own) for name, own in params.items() if name != "calibration"]
