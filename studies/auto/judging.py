"""How an arm of a race stands: its best trial's answers, on users it did not learn from, beside the model's own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from optuna.trial import TrialState

from personalization.data.records import Dataset
from personalization.evaluation import Evaluation, joined
from search_spaces import ChainParams
from studies.auto.allocation import Standing
from studies.auto.arms import Arm
from studies.constraints import feasible
from studies.pruning import same_questions
from studies.study import OpenStudy, ended_trials, ranked
from studies.verdict.selection import settled
from tracking.parts import mean_for
from tracking.significance import gains_by_user


@dataclass
class Entry:
    """An arm that has an open study, and how its best trial does: on which users, with which answers."""

    arm: Arm
    opened: OpenStudy
    trial: int | None = None
    params: ChainParams | None = None
    seen: Evaluation | None = None
    standing: Standing | None = None


def judged_dataset(base: OpenStudy) -> Dataset:
    """The questions that arms are judged on: those of tune and select users."""
    tune, select = base.splits.tune, base.splits.select
    return Dataset(tune.task, tune.labels, (*tune.questions, *select.questions))


def measure(entry: Entry, base: OpenStudy) -> None:
    """An arm's best trial on the users that it did not learn from, where it is another one than before."""
    opened = entry.opened
    best = next(ranked(ended_trials(opened.study), opened.spec.optimize), None)
    if best is None or best.number == entry.trial:
        return
    params = settled(opened, opened.rooms.decode(best.params))
    learned = opened.objective.learned_labels(params)
    if parts := [part for part in _parts(base) if part == "select" or not learned]:
        seen = joined([opened.objective.evaluate(params, part) for part in parts])
        entry.trial, entry.params, entry.seen = best.number, params, seen


def judge(entry: Entry, base: OpenStudy, users: Sequence[str], kept: Mapping[str, Any]) -> None:
    """How an arm stands now with these users, by what was measured of it. `kept`: what the journal has of it."""
    if entry.seen is None:
        return
    slices = kept["slices"]
    sums, _ = gains_by_user(baseline(base, entry.seen), entry.seen, mean_for(next(iter(base.spec.optimize))))
    gains = dict(zip(entry.seen.users[0], sums, strict=True))
    entry.standing = Standing(
        entry.arm.name,
        np.array([gains.get(user, np.nan) for user in users]),
        sum(one["seconds"] for one in slices),
        slices[-1].get("lift", 0.0) if slices else 0.0,
        bool(kept.get("done", False)),
    )


def first_lift(entry: Entry, others: Sequence[float]) -> float:
    """What the first slice brought beyond its first trial, in the study's own metric. One trial says nothing of what
    more would bring: then the median of what first slices brought to the other arms, 0 without any."""
    values = [trial.values[0] for trial in ended_trials(entry.opened.study) if feasible(trial)]
    if len(values) < 2:
        return float(np.median(others)) if others else 0.0
    sign = 1.0 if next(iter(entry.opened.spec.optimize.values())) == "maximize" else -1.0
    return max(float(sign * (value - values[0])) for value in values)


def unmeasured(entry: Entry) -> str:
    """Why an arm has no trial that it could stand by."""
    ended = ended_trials(entry.opened.study)
    counts = Counter(trial.state for trial in ended)
    if not ended:
        return "no trial came to an end in its time"
    if counts[TrialState.FAIL] == len(ended):
        return f"all of its {len(ended)} trials failed"
    if counts[TrialState.PRUNED]:
        return f"out: of its {len(ended)} trials {counts[TrialState.PRUNED]} were ended early, behind the leader"
    if any(feasible(trial) for trial in ended if trial.state == TrialState.COMPLETE):
        judges = entry.opened.splits.select.questions
        return (
            "its best trial was not judged in its time" if judges else "out: there are no select users to judge it by"
        )
    return f"out: none of its {len(ended)} trials keeps to the constraints"


def _parts(base: OpenStudy) -> list[str]:
    return [part for part in ("tune", "select") if base.splits.part(part).questions]


def baseline(base: OpenStudy, seen: Evaluation | None = None) -> Evaluation:
    """What the model itself answers to the questions of other answers, or of all that arms are judged on."""
    whole = joined([base.objective.evaluate(base.rooms.BASELINE, part) for part in _parts(base)])
    found = whole if seen is None else same_questions(whole, seen)
    assert found is not None
    return found


def rival(entry: Entry, best: Entry | None) -> Evaluation | None:
    """The leader's answers on the tune users, which a trial of an arm has to be able to beat; None where the leader
    learned from them, or is this arm."""
    if best is None or best is entry or best.params is None or best.opened.objective.learned_labels(best.params):
        return None
    return best.opened.objective.evaluate(best.params)
