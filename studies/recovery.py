"""Which trials count, and what is queued again. Both follow from the trials alone: a crash in between harms nothing.

A trial that fails says why before it ends. One that failed and says nothing was ended by others: its worker is dead.
Neither counts it, nor one that was interrupted or given back, nor those of an outage, which say nothing about their
parameters. The parameters of all these are measured later, in a new trial that starts clean: it inherits neither
constraints nor attributes.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState

FAILURE = "failure"
"""Trial attribute: why it failed; a traceback, or one of the reasons below."""
WORKER_LOST, INTERRUPTED, SURPLUS, REPEATED = "worker_lost", "interrupted", "surplus", "repeated"
"""Reasons of the loop's own: its worker died; a second Ctrl-C; one trial too many; a queued point queued twice."""
OUTAGE = "outage"
"""Trial attribute: the numbers of the failures in a row that this one completed."""
POINT = "point"
"""Trial attribute: the parameters that it was queued with."""
RETRY_OF = "retry_of"
"""Trial attribute: the number of the trial that it repeats."""


def uncounted(trials: Collection[FrozenTrial]) -> set[int]:
    """Numbers of the failed trials whose failure is not their parameters'."""
    failed = [trial for trial in trials if trial.state == TrialState.FAIL]
    reasons = (WORKER_LOST, INTERRUPTED, SURPLUS, REPEATED)
    found = {trial.number for trial in failed if trial.user_attrs.get(FAILURE, WORKER_LOST) in reasons}
    return found | _outages(failed)


def _outages(failed: Collection[FrozenTrial]) -> set[int]:
    return {number for trial in failed for number in trial.user_attrs.get(OUTAGE, ())}


def enqueue(study: optuna.Study, point: dict[str, Any], **attributes: Any) -> None:
    """Put parameters into the queue; the trial that takes them remembers them, should it die before it has them all."""
    study.enqueue_trial(point, user_attrs={POINT: point, **attributes})


def fail(study: optuna.Study, lost: Collection[FrozenTrial]) -> list[int]:
    """Fail trials that nobody works on; the numbers failed here. One that ended meanwhile stays as it is."""
    failed = []
    for trial in lost:
        try:
            ended = study.tell(trial.number, state=TrialState.FAIL, skip_if_finished=True)
        except UpdateFinishedTrialError:
            continue
        if ended.state == TrialState.FAIL and FAILURE not in ended.user_attrs:
            failed.append(trial.number)
    return failed


def queue_again(study: optuna.Study, trials: Sequence[FrozenTrial], parameters: Collection[str]) -> bool:
    """Queue the parameters of what did not count, each once; whether there were any. `trials`: all of the study.

    A trial that died while it was asked for, without all `parameters`, is left to the sampler, unless it came from the
    queue. The second failure in an outage is not tried a third time: it may be the parameters' after all.
    """
    retried = {trial.user_attrs.get(RETRY_OF) for trial in trials}
    outages = _outages([trial for trial in trials if trial.state == TrialState.FAIL])
    queued = False
    for number in sorted(uncounted(trials) - retried):
        attributes = trials[number].user_attrs
        point = {**attributes.get(POINT, {}), **trials[number].params}
        whole = POINT in attributes or set(point) == set(parameters)
        again = number in outages and attributes.get(RETRY_OF) in outages
        if whole and not again and attributes.get(FAILURE) != REPEATED:
            enqueue(study, point, **{RETRY_OF: number})
            queued = True
    return queued
