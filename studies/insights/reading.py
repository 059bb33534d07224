"""Histories of stored studies: of chamtune, imported ones, and any other Optuna study of the storage; with fields.

Fields are what is known of a trial beside its parameters, such as how much it trained and on what data. They are
computed when a trial ends, and lie in what was measured of it. A trial of before has none, and a finished one cannot be
changed: `backfill` works them out again, once, and keeps them with the study.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import optuna
from optuna.trial import FrozenTrial, TrialState
from pydantic import BaseModel

from personalization.databases import shown
from personalization.errors import UsageError
from studies.constraints import parse_constraint
from studies.insights.history import History, Parameter, history
from studies.rows import finished_trials
from studies.storage import may_exist, open_storage, storage_url, uncollected
from studies.study import RECORD, OpenStudy, finished, stored_rooms, stored_spec, study_names
from studies.trial import MEASURED, storable_fields

FOREIGN = "foreign"
"""Study attribute of an imported history: source, metric, groups, constraints; of its trials: where each came from."""
KEPT = "fields:"
"""Study attribute, with a trial's number behind it: the fields of a trial that had none when it ended."""
Fields = dict[int, dict[str, Any]]


def read_histories(names: Sequence[str], home: Path, url: str | None = None, goal: str | None = None) -> list[History]:
    """The histories of stored studies by name, each once, of any origin; of all of them where none is named.
    UsageError for an unknown study or goal."""
    where = storage_url(home, url)
    if not may_exist(where):
        raise UsageError(
            f"no studies in {home}; `chamtune run demo --home {home}` makes one, `chamtune import` brings one"
        )
    storage = open_storage(where, reading=True)
    there = study_names(storage)
    for name in names:
        if name not in there:
            raise UsageError(f"no study {name!r} in {shown(where)}; there are: {', '.join(there) or 'none'}")
    if not there:
        raise UsageError(f"no studies in {home}; start one with `chamtune run demo --home {home}`")
    return [
        history_of(optuna.load_study(study_name=name, storage=storage), finished_trials(storage, name), goal)
        for name in dict.fromkeys(names or there)
    ]


def goals_of(study: optuna.Study) -> dict[str, str]:
    """What a study of any origin optimises: metric -> direction."""
    if RECORD in study.user_attrs:
        return {**stored_spec(study).optimize}
    directions = [direction.name.lower() for direction in study.directions]
    names = study.metric_names or [f"value {i}" if i else "value" for i in range(len(directions))]
    return dict(zip(names, directions, strict=True))


@uncollected()
def history_of(study: optuna.Study, trials: list[FrozenTrial], goal: str | None = None) -> History:
    """The history of a stored study with these trials, of its first goal or the named one; UsageError where it has no
    such goal."""
    goals, ended = goals_of(study), finished(trials)
    metric = next(iter(goals)) if goal is None else goal
    if metric not in goals:
        raise UsageError(f"study {study.study_name} has no goal {metric!r}; there are: {', '.join(goals)}")
    one = (metric, goals[metric])
    told = dict[str, Any](study.user_attrs.get(FOREIGN) or {})
    rooms, bounds = None, {name: parse_constraint(name, text) for name, text in told.get("constraints", {}).items()}
    if RECORD in study.user_attrs:
        rooms = stored_rooms(study)
        bounds = {bound.metric: bound for bound in stored_spec(study).parsed_constraints()}
    made = history(study.study_name, ended, one, rooms, told.get("groups"), list(goals).index(metric))
    made = with_fields(made, fields_of(ended, study.user_attrs))
    return replace(made, bounds=bounds, foreign=FOREIGN in study.user_attrs, goals=tuple(goals))


def fields_of(trials: Sequence[FrozenTrial], kept: Mapping[str, Any]) -> Fields:
    """Trial number -> its fields: its own, those of the trial whose result it repeats, or those kept with the study."""
    found: Fields = {}
    for trial in trials:
        measured = trial.user_attrs.get(MEASURED)
        if not isinstance(measured, dict):
            continue
        repeated = measured.get("duplicate_of")
        told = measured.get("fields") or (found.get(repeated) if isinstance(repeated, int) else None)
        told = told or kept.get(f"{KEPT}{trial.number}")
        if isinstance(told, dict):
            found[trial.number] = {name: value for name, value in told.items() if not isinstance(value, dict)}
    return found


def with_fields(history: History, fields: Fields) -> History:
    """The history with a column a field; the group of a field stands before the dot of its name."""
    if not fields:
        return history
    names = list(dict.fromkeys(name for told in fields.values() for name in told))
    frame, known = history.trials.copy(), dict[str, Parameter]()
    for name in names:
        column = [fields.get(number, {}).get(name) for number in frame["number"]]
        items = any(isinstance(value, list) for value in column)
        frame[f"params_{name}"] = [tuple(map(str, value)) if isinstance(value, list) else value for value in column]
        discrete = not any(isinstance(value, float) for value in column)
        known[name] = Parameter(name, name.partition(".")[0], discrete, items)
    return replace(history, trials=frame, fields=known)


def backfill(opened: OpenStudy) -> dict[str, int]:
    """Work out the fields of the complete trials that have none; how many were filled, and how many had theirs.

    What a trial needs is read from what is stored; what is stored no longer is run again.
    """
    trials = opened.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    had = fields_of(trials, opened.study.user_attrs)
    missing = [trial for trial in trials if trial.number not in had and MEASURED in trial.user_attrs]
    for trial in missing:
        facts = opened.objective.facts(opened.rooms.decode(trial.params))
        opened.study.set_user_attr(f"{KEPT}{trial.number}", storable_fields(facts))
    return {"filled": len(missing), "had": len(had)}


def path_file(home: Path, name: str, goal: str | None = None) -> Path:
    """Where the measured path of a study is kept, by its first goal or another."""
    return home / "results" / name / "insights" / ("path.json" if goal is None else f"path-{goal}.json")


def kept_path(home: Path, name: str, goal: str | None = None) -> dict[str, Any] | None:
    """The path that was measured last; None where none was, or what stands there is no path."""
    try:
        found: dict[str, Any] = json.loads(path_file(home, name, goal).read_text(encoding="utf-8"))
        _Path.model_validate(found)
    except (FileNotFoundError, ValueError):
        return None
    return found


class _Gain(BaseModel):
    gain: float
    low: float
    high: float


class _Step(_Gain):
    step: str
    values: dict[str, Any]
    alone: float
    without: float
    droppable: bool
    users: dict[Literal["better", "worse", "same"], int] | None
    moved: list[dict[Literal["user", "gain"], str | float]]


class _Path(_Gain):
    """What is read of a kept path."""

    trial: int
    measured_on: str
    metric: str
    before: float | None
    after: float | None
    error: float | None = None
    steps: list[_Step]
