"""Histories of stored studies: of chamtune, imported ones, and any other Optuna study of the storage."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import optuna

from personalization.databases import shown
from personalization.errors import UsageError
from studies.constraints import parse_constraint
from studies.insights.history import History, history
from studies.storage import may_exist, open_storage, storage_url
from studies.study import RECORD, finished, stored_spec, study_names

FOREIGN = "foreign"
"""Study attribute of an imported history: source, metric, groups, constraints; of its trials: where each came from."""


def load_studies(names: Sequence[str], home: Path, url: str | None) -> list[optuna.Study]:
    """Stored studies by name, of any origin; all of them where none is named. UsageError for an unknown one."""
    where = storage_url(home, url)
    if not may_exist(where):
        raise UsageError(
            f"no studies in {home}; `chamtune run demo --home {home}` makes one, `chamtune import` brings one"
        )
    storage = open_storage(where)
    there = study_names(storage)
    for name in names:
        if name not in there:
            raise UsageError(f"no study {name!r} in {shown(where)}; there are: {', '.join(there) or 'none'}")
    return [optuna.load_study(study_name=name, storage=storage) for name in names or there]


def history_of(study: optuna.Study) -> History:
    """The history of a stored study: of its first goal."""
    trials = finished(study.get_trials(deepcopy=False))
    record, foreign = study.user_attrs.get(RECORD), study.user_attrs.get(FOREIGN)
    if record is not None:
        spec = stored_spec(study)
        rooms = spec.space_of.starting_from(record.get("started", {}))
        made = history(study.study_name, trials, next(iter(spec.optimize.items())), rooms)
        bounds = {bound.metric: bound for bound in spec.parsed_constraints()}
        return History(made.name, made.metric, made.maximize, made.trials, made.parameters, bounds)
    direction = study.directions[0].name.lower()
    told: dict[str, Any] = foreign or {}
    metric = told.get("metric") or (study.metric_names or ["value"])[0]
    made = history(study.study_name, trials, (metric, direction), groups=told.get("groups"))
    bounds = {name: parse_constraint(name, text) for name, text in told.get("constraints", {}).items()}
    return History(
        made.name, made.metric, made.maximize, made.trials, made.parameters, bounds, foreign=foreign is not None
    )


def path_file(home: Path, name: str) -> Path:
    """Where the measured path of a study is kept."""
    return home / "results" / name / "insights" / "path.json"


def kept_path(home: Path, name: str) -> dict[str, Any] | None:
    """The path that was measured last; None where none was, or what stands there is no path."""
    try:
        found = json.loads(path_file(home, name).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return found if isinstance(found, dict) and "steps" in found else None
