"""Trials carried on: what an earlier study measured, taken into a new one with a wider, narrower or changed space.

Of a study of the same data, model and chain every trial whose parameters mean the same in the new space is kept with
its result: a parameter that is new has its baseline in it, and goals and bounds are read anew from the metrics that
were measured. Of a study of other data or another model, whose values do not compare, the best settings are queued by
rank instead: the likely best (`insights.likely`), since what was best by luck was so on those users alone. Where
accuracy is the goal, a calibration keeps what it says of priors, and its strengths are solved again on these users:
exactly along lines, without a pass. What does not fit is counted by its reason. Each carried trial says where it came
from.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState

from personalization.errors import UsageError
from personalization.files import locked
from studies.insights.likely import likely
from studies.insights.reading import history_of
from studies.recovery import enqueue
from studies.samplers import holds
from studies.spec import StudySpec
from studies.study import RECORD, OpenStudy, ended_trials, find_study, open_study, ranked, stored_spec
from studies.trial import MEASURED

CARRIED = "carried_from"
"""Trial attribute: study and number of the trial that it repeats, or whose setting it tries."""
BEGAN = "carrying_began"
"""Study attribute: study -> how many trials it had when they were first to be carried from there."""
QUEUED = 10
"""Most settings of another study that are queued."""
SAME = ("data", "model", "task", "chain", "objective", "start_from")
"""What of two specs must be equal for their values to compare, beside the fingerprints of data and model."""


def carry_over(
    spec: StudySpec, home: Path, names: Sequence[str], progress: Callable[[int, int], None] | None = None
) -> list[dict[str, Any]]:
    """Take trials of these studies into that of a spec, once; a row a study: study, kept, queued, outside (reason ->
    count). UsageError where one is not there, or has another chain."""
    others = [find_study(name, home, spec.storage) for name in names]
    for other in others:
        was = stored_spec(other)
        if other.study_name == spec.name:
            raise UsageError(f"--from {other.study_name}: a study cannot go on from itself; give another --name")
        if was.method != spec.method:
            raise UsageError(
                f"--from {other.study_name}: its chain is {was.method}, and that of {spec.name} is {spec.method}; "
                "settings of one mean nothing in the other"
            )
    opened = open_study(spec, home, progress)
    return [carry(opened, other) for other in others]


def carry(opened: OpenStudy, other: optuna.Study) -> dict[str, Any]:
    """Take trials of a study with the same chain into an open one, once; a row as of `carry_over`.

    What was begun is ended by the next one who asks, with the trials that were there then; by one process at a time.
    """
    name = other.study_name
    with locked(opened.home / "locks" / f"carry-{opened.record['id']}.lock"):
        there = {
            trial.user_attrs[CARRIED]["trial"]: trial
            for trial in opened.study.get_trials(deepcopy=False)
            if trial.user_attrs.get(CARRIED, {}).get("study") == name
        }
        began = opened.study.user_attrs.get(BEGAN, {})
        if there and name not in began:  # by an earlier version
            return _already(name, there.values())
        if name not in began:
            began = {**began, name: len(other.get_trials(deepcopy=False))}
            opened.study.set_user_attr(BEGAN, began)
        trials = [trial for trial in ended_trials(other) if trial.number < began[name]]
        take = _keep if _compares(opened, other) else _queue
        taken, outside = take(opened, other, trials, there.keys())
        if there and not taken:
            return _already(name, there.values())
        kept, queued = (taken, 0) if take is _keep else (0, taken)
        told = dict(outside.most_common())
        return {"study": name, "kept": kept, "queued": queued, "outside": told, "already": False}


def _already(name: str, there: Collection[FrozenTrial]) -> dict[str, Any]:
    kept = sum(trial.state != TrialState.WAITING and MEASURED in trial.user_attrs for trial in there)
    return {"study": name, "kept": kept, "queued": len(there) - kept, "outside": {}, "already": True}


def _keep(
    opened: OpenStudy, other: optuna.Study, trials: list[FrozenTrial], there: Collection[int]
) -> tuple[int, Counter[str]]:
    """Keep these trials with what was measured, but for those that are there: (how many, reasons of the others)."""
    outside, kept = Counter[str](), list[FrozenTrial]()
    for trial in trials:
        made, reason = _kept(opened, trial, other.study_name)
        if made is None:
            outside[reason] += 1
        elif trial.number not in there:
            kept.append(made)
    opened.study.add_trials(kept)
    return len(kept), outside


def _queue(
    opened: OpenStudy, other: optuna.Study, trials: list[FrozenTrial], there: Collection[int]
) -> tuple[int, Counter[str]]:
    """Queue the settings of the best of these trials, but for those that are there: (how many, reasons of others)."""
    outside, queued = Counter[str](), 0
    for trial in likely_best(other, trials):
        if queued + len(there) == QUEUED:
            break
        point, reason = _point(opened, trial)
        if point is None:
            outside[reason] += 1
        elif trial.number not in there:
            said = {CARRIED: {"study": other.study_name, "trial": trial.number}}
            enqueue(opened.study, solved_again(opened, point), **said)
            queued += 1
    return queued, outside


def likely_best(study: optuna.Study, trials: list[FrozenTrial]) -> list[FrozenTrial]:
    """Feasible trials, the likely best first; of several goals those of the Pareto front first."""
    if len(stored_spec(study).optimize) > 1:
        return list(ranked(trials, stored_spec(study).optimize))
    by_number = {trial.number: trial for trial in trials}
    return [by_number[number] for number in likely(history_of(study, trials))["number"]]


def _compares(opened: OpenStudy, other: optuna.Study) -> bool:
    """Whether what the other study measured is what this one would measure."""
    record = other.user_attrs[RECORD]
    mine, theirs = opened.spec.identity(), stored_spec(other).identity()
    same = all(mine.get(key) == theirs.get(key) for key in SAME)
    started = record.get("started", {}) == opened.record.get("started", {})
    return same and started and all(record.get(key) == opened.record.get(key) for key in ("data", "model", "retriever"))


def _kept(opened: OpenStudy, trial: FrozenTrial, name: str) -> tuple[FrozenTrial | None, str]:
    """The trial as one of this study, or why it is none."""
    if trial.state != TrialState.COMPLETE:
        return None, trial.state.name.lower()
    measured = trial.user_attrs[MEASURED]
    metrics: Mapping[str, float | None] = measured["metrics"]
    wanted = (*opened.spec.optimize, *(bound.metric for bound in opened.constraints))
    values = {metric: metrics.get(metric) for metric in wanted}
    if missing := [metric for metric, value in values.items() if value is None]:
        return None, f"{missing[0]} was not measured"
    point, reason = _point(opened, trial)
    if point is None:
        return None, reason
    known = {metric: float(value) for metric, value in values.items() if value is not None}
    return (
        optuna.create_trial(
            values=[known[metric] for metric in opened.spec.optimize],
            params=point,
            distributions=dict(opened.space),
            constraints={bound.metric: bound.violation(known[bound.metric]) for bound in opened.constraints},
            user_attrs={MEASURED: measured, CARRIED: {"study": name, "trial": trial.number}},
        ),
        "",
    )


def _point(opened: OpenStudy, trial: FrozenTrial) -> tuple[dict[str, Any] | None, str]:
    """The trial's parameters as a point of this space that means the same, or why there is none."""
    rooms = opened.rooms
    raw = {
        **rooms.raw(rooms.BASELINE.full()),
        **{name: value for name, value in trial.params.items() if name in rooms.names},
    }
    idle, point = rooms.idle(raw), dict[str, Any]()
    for name, distribution in opened.space.items():
        if holds(name, distribution, raw[name]):
            point[name] = raw[name]
        elif name in idle:
            point[name] = _any(distribution)
        else:
            return None, f"{name} is outside the new range"
    if rooms.decode(point) != rooms.decode(raw):
        moved = next((name for name in trial.params if name not in opened.space and name not in idle), None)
        return None, f"{moved} is fixed to another value" if moved else "what it left unused acts in the new space"
    return point, ""


def solved_again(opened: OpenStudy, point: dict[str, Any]) -> dict[str, Any]:
    """The point with the strengths that suit these users, as far as the space holds them."""
    if next(iter(opened.spec.optimize.items())) != ("accuracy", "maximize"):
        return point
    before = opened.rooms.decode(point)
    raw, now = (opened.rooms.raw(params.full()) for params in (before, opened.objective.solved(before)))
    moved = {name: now[name] for name in opened.space if now[name] != raw[name]}
    return point | moved if all(holds(name, opened.space[name], value) for name, value in moved.items()) else point


def kept_from_elsewhere(trial: FrozenTrial) -> bool:
    """Whether a trial was carried with its values; one that was carried to be tried here has run here."""
    return CARRIED in trial.user_attrs and "fixed_params" not in trial.system_attrs


def _any(distribution: BaseDistribution) -> Any:
    """Some value of a distribution, for a parameter that nothing reads."""
    if isinstance(distribution, CategoricalDistribution):
        return distribution.choices[0]
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    return distribution.low


def carried_said(row: Mapping[str, Any]) -> str:
    """A row in words."""
    if row["already"]:
        return f"{row['kept'] + row['queued']} trials of {row['study']} were carried here before"
    done = f"kept {row['kept']} trials" if row["kept"] or not row["queued"] else f"queued {row['queued']} settings"
    left = ", ".join(f"{count} where {reason}" for reason, count in row["outside"].items())
    return f"{done} of {row['study']}" + (f"; left out {left}" if left else "")
