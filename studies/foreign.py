"""Finished runs of any origin as an Optuna study: for insights and dashboards, never to be run on or promoted.

A table has a row a run. One column is the value, some are bounded, the others are parameters: whole numbers, numbers,
words, or JSON lists (of words, or of objects with name and dim), whose items are told apart. A column whose words are
nearly all different names the runs and is left out. Study and trials are marked as foreign.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from personalization.data import table
from personalization.data.values import WHOLE, plain
from personalization.databases import sqlite_file, sqlite_url
from personalization.errors import DataError, UsageError
from studies.constraints import UNMEASURED, Constraint, parse_constraint
from studies.insights.history import ITEMS, History, history, is_number, items_of, metrics_of
from studies.insights.reading import FOREIGN, fields_of, goals_of
from studies.names import study_name
from studies.recovery import FAILURE
from studies.storage import may_exist, one_creator, open_storage, storage_url
from studies.study import study_names
from studies.trial import MEASURED

FEW = 12
"""Most different numbers that are taken as a choice."""
SQLITE = b"SQLite format 3"
"""How a database of SQLite begins."""
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Mapped:
    """What the columns of a table are. `groups`: column -> group; `constraints`: column -> bound as in a spec;
    `left_out`: columns that are nothing."""

    value: str
    direction: str = "maximize"
    constraints: Mapping[str, str] = field(default_factory=dict)
    groups: Mapping[str, str] = field(default_factory=dict)
    left_out: Sequence[str] = ()

    def bounds(self) -> list[Constraint]:
        """The constraints; UsageError for one that is no bound."""
        try:
            return [parse_constraint(name, text) for name, text in sorted(self.constraints.items())]
        except ValueError as error:
            raise UsageError(f"constraint {error}") from None


def csv_rows(path: Path) -> list[Row]:
    """The rows of a CSV file; DataError where it is none."""
    if path.is_file():
        with path.open("rb") as file:
            if file.read(len(SQLITE)) == SQLITE:
                raise DataError(f"{path} is a SQLite database; `chamtune import {sqlite_url(path)}` reads one")
    rows = list(table.csv_rows(path))
    if not rows:
        raise DataError(f"{path}: no row in it")
    for number, row in enumerate(rows, start=2):
        if None in row.values():
            raise DataError(f"{path}: line {number} has fewer cells than the heading")
    return [{name: cell(text) for name, text in row.items()} for row in rows]


def cell(held: Any) -> Any:
    """What a cell holds: None where it is empty or no finite number, a number, a tuple of items, or a text."""
    if not isinstance(held, str):
        return _cell_of_library(held)
    text = held.strip()
    if not text:
        return None
    for kind in (int, float) if "_" not in text else ():
        try:
            number = kind(text)
        except ValueError:
            continue
        return _number(number)
    return _items(text) if text.startswith("[") else text


def _cell_of_library(held: Any) -> Any:
    """The same of a value that a library has read."""
    if isinstance(held, list | tuple | np.ndarray):
        return tuple(held)
    held = held.item() if isinstance(held, np.generic) else held
    if plain(held) is None:
        return None
    return _number(held) if is_number(held) else held


def _number(number: float) -> float | None:
    """The number, a float where floats do not tell whole numbers apart, as trials hold them; None if it is not
    finite."""
    try:
        held = float(number)
    except OverflowError:
        return None
    return None if not math.isfinite(held) else number if abs(held) < WHOLE else held


def _items(text: str) -> Any:
    try:
        return tuple(
            f"{i['name']} {i['dim']}D" if isinstance(i, dict) and {"name", "dim"} <= set(i) else str(i)
            for i in json.loads(text)
        )
    except (RecursionError, ValueError):
        return text


def trials_of(rows: Sequence[Row], mapped: Mapped, source: str) -> tuple[list[FrozenTrial], list[str]]:
    """The rows as finished trials, and the columns that were left out; a row without a value has failed.

    UsageError where a named column is missing, DataError where value or bounded columns hold no numbers.
    """
    columns = list(dict.fromkeys(name for row in rows for name in row))
    for name in (mapped.value, *mapped.constraints, *mapped.groups, *mapped.left_out):
        if name not in columns:
            raise UsageError(f"{source}: there is no column {name!r}; there are {', '.join(columns)}")
    _refuse_words(rows, (mapped.value, *mapped.constraints), source)
    taken = {mapped.value, *mapped.constraints, *mapped.left_out}
    distributions: dict[str, BaseDistribution] = {}
    listed, names = list[str](), list[str]()
    for name in (column for column in columns if column not in taken):
        values = [row[name] for row in rows if row.get(name) is not None]
        if values and all(isinstance(value, tuple) for value in values):
            listed.append(name)
        elif (found := _distribution(values, len(rows))) is not None:
            distributions[name] = found
        else:
            names.append(name)
    if not distributions and not listed:
        raise DataError(f"{source}: no column is a parameter")
    bounds = mapped.bounds()
    return [_trial(row, place, mapped, distributions, listed, bounds, source) for place, row in enumerate(rows)], names


def _refuse_words(rows: Sequence[Row], columns: Sequence[str], source: str) -> None:
    for name in columns:
        for number, row in enumerate(rows, start=1):
            if row.get(name) is not None and not isinstance(row[name], int | float):
                raise DataError(f"{source}: row {number}: {name} is {str(row[name])[:40]!r}, which is no number")


def _distribution(values: Sequence[Any], rows: int) -> BaseDistribution | None:
    """What gives these values; None for names of runs, or nothing."""
    different = list(dict.fromkeys(values))
    if not different:
        return None
    if all(isinstance(value, int) for value in different):
        return IntDistribution(min(different), max(different))
    if all(isinstance(value, int | float) for value in different):
        if len(different) <= FEW and 2 * len(different) <= rows:
            return CategoricalDistribution(sorted(map(float, different)))
        return FloatDistribution(float(min(different)), float(max(different)))
    words = list(dict.fromkeys(map(str, values)))
    return None if len(words) > 2 and 2 * len(words) > rows else CategoricalDistribution(sorted(words))


def _trial(
    row: Row,
    place: int,
    mapped: Mapped,
    distributions: Mapping[str, BaseDistribution],
    listed: Sequence[str],
    bounds: Sequence[Constraint],
    source: str,
) -> FrozenTrial:
    params = {name: _fitting(row[name], of) for name, of in distributions.items() if row.get(name) is not None}
    numbers = {name: float(row[name]) for name in (mapped.value, *mapped.constraints) if row.get(name) is not None}
    attributes: dict[str, Any] = {
        FOREIGN: {"source": source, "row": place + 1},
        MEASURED: {"metrics": numbers},
    }
    if items := {name: list(row[name]) for name in listed if row.get(name) is not None}:
        attributes[ITEMS] = items
    measured = mapped.value in numbers
    if not measured:
        attributes[FAILURE] = f"{mapped.value} is empty"
    violations = {c.metric: c.violation(numbers[c.metric]) if c.metric in numbers else UNMEASURED for c in bounds}
    return optuna.create_trial(
        state=TrialState.COMPLETE if measured else TrialState.FAIL,
        value=numbers.get(mapped.value),
        params=params,
        distributions={name: distributions[name] for name in params},
        user_attrs=attributes,
        constraints=violations,
    )


def _fitting(value: Any, distribution: BaseDistribution) -> Any:
    if isinstance(distribution, FloatDistribution):
        return float(value)
    if isinstance(distribution, CategoricalDistribution):
        return float(value) if isinstance(distribution.choices[0], float) else str(value)
    return value


def optuna_trials(url: str, study: str | None) -> tuple[list[FrozenTrial], dict[str, Any]]:
    """The finished trials of a study elsewhere, marked, and what is known of it; UsageError where it is not clear
    which."""
    if not may_exist(url):
        raise UsageError(f"there is no file {sqlite_file(url)}")
    storage = open_storage(url)
    there = study_names(storage)
    if study is None and len(there) != 1:
        raise UsageError(f"which study? Give --study, one of {', '.join(there) or 'none'}")
    chosen = study or there[0]
    if chosen not in there:
        raise UsageError(f"no study {chosen!r} there; there are: {', '.join(there) or 'none'}")
    found = optuna.load_study(study_name=chosen, storage=storage)
    trials = [trial for trial in found.get_trials() if trial.state.is_finished()]
    fields = fields_of(trials, found.user_attrs)
    for trial in trials:
        measured = {"metrics": metrics_of(trial), "fields": fields.get(trial.number)}
        own = {MEASURED: {key: given for key, given in measured.items() if given}, ITEMS: items_of(trial)}
        for key, given in own.items():
            trial.user_attrs.pop(key, None)
            if given:
                trial.user_attrs[key] = given
        trial.user_attrs[FOREIGN] = {"source": chosen, "row": trial.number}
        if trial.state == TrialState.FAIL:
            trial.user_attrs.setdefault(FAILURE, "failed where it came from")
    return trials, {"name": chosen, "goals": goals_of(found)}


def mlflow_rows(uri: str, experiment: str, mapped: Mapped) -> tuple[list[Row], str]:
    """The runs of an MLflow experiment as rows, with the metrics that are mapped, and its name; UsageError where it has
    no run."""
    from tracking.runs import runs_of

    rows = runs_of(uri, experiment, {mapped.value, *mapped.constraints})
    if not rows:
        raise UsageError(f"experiment {experiment!r} has no finished run")
    return [{name: cell(held) for name, held in row.items()} for row in rows], experiment


def rows_of(path: Path) -> tuple[list[Row], str]:
    """The rows of a CSV file, and a name for their study."""
    return csv_rows(path), path.stem


def table_history(rows: Sequence[Row], mapped: Mapped, source: str) -> History:
    """The history of a table's rows, nothing being stored."""
    trials, _ = trials_of(rows, mapped, source)
    for number, trial in enumerate(trials):
        trial.number = number
    made = history(source, trials, (mapped.value, mapped.direction), groups=mapped.groups)
    bounds = {bound.metric: bound for bound in mapped.bounds()}
    return replace(made, bounds=bounds, foreign=True)


def import_rows(rows: Sequence[Row], mapped: Mapped, name: str, place: tuple[Path, str | None]) -> dict[str, Any]:
    """Keep a table's rows as a study; JSON-able: study, source, trials, complete, left_out."""
    trials, left_out = trials_of(rows, mapped, name)
    told = {"source": name, "groups": dict(mapped.groups), "constraints": dict(mapped.constraints)}
    return _kept(name, trials, {mapped.value: mapped.direction}, told, place) | {"left_out": left_out}


def import_optuna(url: str, study: str | None, name: str | None, place: tuple[Path, str | None]) -> dict[str, Any]:
    """Keep a study of another storage; JSON-able as `import_rows`."""
    trials, known = optuna_trials(url, study)
    return _kept(name or known["name"], trials, known["goals"], {"source": known["name"]}, place) | {"left_out": []}


def _kept(
    name: str,
    trials: Sequence[FrozenTrial],
    goals: Mapping[str, str],
    told: Mapping[str, Any],
    place: tuple[Path, str | None],
) -> dict[str, Any]:
    """Write trials into the storage of a home as a new study, marked as foreign, all or none; UsageError where the name
    is taken, or no study can be called so."""
    home, url = place
    try:
        study_name(name)
    except UsageError as error:
        raise UsageError(f"{error}; --name gives one") from None
    home.mkdir(parents=True, exist_ok=True)
    storage = open_storage(storage_url(home, url))
    directions = [StudyDirection[direction.upper()] for direction in goals.values()]
    with one_creator(storage.url):
        if name in optuna.get_all_study_names(storage):
            raise UsageError(f"there is a study {name!r} already; give another --name")
        study = optuna.create_study(storage=storage, study_name=name, directions=directions)
        study.set_user_attr(FOREIGN, {**told, "metric": next(iter(goals))})
    with ExitStack() as undone:
        undone.callback(optuna.delete_study, study_name=name, storage=storage)
        with warnings.catch_warnings(category=optuna.exceptions.ExperimentalWarning, action="ignore"):
            study.set_metric_names(list(goals))
        study.add_trials(trials)
        undone.pop_all()
    complete = sum(trial.state == TrialState.COMPLETE for trial in trials)
    return {"study": name, "source": told["source"], "trials": len(trials), "complete": complete}
