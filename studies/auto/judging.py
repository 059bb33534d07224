"""How an arm of a race stands: its best trial's answers, on users it did not learn from, beside the model's own.

A judge is a user in a part of the data, tune or select: where users are split by time the same one is in both, and an
arm that learned from tune questions is judged by the others alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import optuna
from optuna.trial import FrozenTrial, TrialState

from personalization.data.records import Question
from personalization.evaluation import Evaluation, all_metrics, joined
from search_spaces import ChainParams
from studies.auto.allocation import Standing
from studies.auto.arms import Arm, Scene
from studies.carried import kept_from_elsewhere
from studies.constraints import feasible
from studies.study import OpenStudy, ended_trials, ranked, study_names
from studies.verdict.selection import SHORTLIST, settled
from tracking.parts import mean_for
from tracking.significance import gains_by_user

TOLD_S, PACE = 1.0, 2.0
"""Seconds from which on what was said of a first trial is compared with what it took, and how far the two are believed
to be apart: a trial that found its scores in a store says little."""


class Judge(NamedTuple):
    """A user in a part of the data."""

    part: str
    user: str


@dataclass
class Entry:
    """An arm that has an open study, and how its best trial does: part -> answers; `broken`: trials that do not keep
    to the constraints there; `below`: the arm that it stands on; `took_s`: seconds of its first trial, once one has
    ended."""

    arm: Arm
    opened: OpenStudy
    trial: int | None = None
    params: ChainParams | None = None
    answers: Mapping[str, Evaluation] = field(default_factory=dict)
    standing: Standing | None = None
    broken: set[int] = field(default_factory=set)
    below: Entry | None = None
    took_s: float | None = None

    def pace(self, scene: Scene) -> float:
        """How much longer its first trial took than was said; that of the arm below where it had nothing to run."""
        said = scene.pass_s * self.arm.passes(scene)
        if said >= TOLD_S and self.took_s is None:  # it stays what it is, and a race asks often
            ended = (one.duration for one in _own(self.opened.study) if one.state == TrialState.COMPLETE)
            self.took_s = next((took.total_seconds() for took in ended if took is not None), None)
        if said >= TOLD_S and self.took_s is not None:
            return float(np.clip(self.took_s / said, 1 / PACE, PACE))
        return 1.0 if self.below is None else self.below.pace(scene)

    def passes(self, scene: Scene) -> float:
        """Passes of its first trial, at its pace."""
        return self.pace(scene) * self.arm.passes(scene)

    def answering(self, scene: Scene) -> float:
        """Passes for answering as many questions as there are tune questions, as it was found, at its pace."""
        return self.pace(scene) * self.arm.answering(scene, self.params)

    def again(self, scene: Scene) -> float:
        """Passes over what is kept by text, and so run once, at its pace."""
        return self.pace(scene) * self.arm.again(scene)

    @property
    def seen(self) -> Evaluation | None:
        """The answers of all parts together."""
        return joined(list(self.answers.values())) if self.answers else None


def own_trials(base: OpenStudy, name: str) -> list[FrozenTrial]:
    """The trials of another study in the storage that ended there; none where it was not begun."""
    if name not in study_names(base.storage):
        return []
    return _own(optuna.load_study(study_name=name, storage=base.storage))


def _own(study: optuna.Study) -> list[FrozenTrial]:
    return [trial for trial in ended_trials(study) if not kept_from_elsewhere(trial)]


def judged(base: OpenStudy) -> list[tuple[Judge, Question]]:
    """The questions that arms are judged on, each with whose it is."""
    return [(Judge(part, q.user_id), q) for part in _parts(base) for q in base.splits.part(part).questions]


def measure(entry: Entry, base: OpenStudy) -> None:
    """The arm's best trial on the users that it did not learn from, where it is another one than before.

    Of the best five, the first that keeps to the constraints there, too.
    """
    opened = entry.opened
    for trial in islice(ranked(ended_trials(opened.study), opened.spec.optimize), SHORTLIST):
        if trial.number == entry.trial:
            return
        if trial.number in entry.broken:
            continue
        params = settled(opened, opened.rooms.decode(trial.params))
        learned = opened.objective.learned_labels(params)
        parts = [part for part in _parts(base) if part == "select" or not learned]
        answers = {part: opened.objective.evaluate(params, part) for part in parts}
        if answers and _breaks(opened, joined(list(answers.values())), baseline(base, parts)):
            entry.broken.add(trial.number)
        elif answers:
            entry.trial, entry.params, entry.answers = trial.number, params, answers
            return


def _breaks(opened: OpenStudy, seen: Evaluation, before: Evaluation) -> bool:
    metrics = all_metrics(seen, before) if opened.constraints else {}
    return any(bound.violation(metrics[bound.metric]) > 0 for bound in opened.constraints)


def judge(entry: Entry, base: OpenStudy, judges: Sequence[Judge], kept: Mapping[str, Any]) -> None:
    """How an arm stands now with these judges, by what was measured of it. `kept`: what the journal has of it."""
    if not entry.answers:
        return
    slices, metric, gains = kept["slices"], mean_for(next(iter(base.spec.optimize))), dict[Judge, float]()
    for part, seen in entry.answers.items():
        sums, _ = gains_by_user(baseline(base, [part]), seen, metric)
        gains |= {Judge(part, user): own for user, own in zip(seen.users[0], sums.tolist(), strict=True)}
    entry.standing = Standing(
        entry.arm.name,
        np.array([gains.get(one, np.nan) for one in judges]),
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
    if entry.broken:
        return f"out: its {len(entry.broken)} best trials break a constraint on users that they did not learn from"
    if any(feasible(trial) for trial in ended if trial.state == TrialState.COMPLETE):
        judges = entry.opened.splits.select.questions
        return (
            "its best trial was not judged in its time" if judges else "out: there are no select users to judge it by"
        )
    return f"out: none of its {len(ended)} trials keeps to the constraints"


def _parts(base: OpenStudy) -> list[str]:
    return [part for part in ("tune", "select") if base.splits.part(part).questions]


def baseline(base: OpenStudy, parts: Iterable[str] | None = None) -> Evaluation:
    """What the model itself answers to the questions of these parts, or of all that arms are judged on."""
    return joined([base.objective.evaluate(base.rooms.BASELINE, part) for part in parts or _parts(base)])


def rival(entry: Entry, best: Entry | None) -> Evaluation | None:
    """The leader's answers on the tune users, which a trial of an arm has to be able to beat; None where the leader
    learned from them, or is this arm."""
    if best is None or best is entry or best.params is None or best.opened.objective.learned_labels(best.params):
        return None
    return best.opened.objective.evaluate(best.params)
