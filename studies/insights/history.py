"""The table that all insights are computed from: a row a finished trial, made from any list of Optuna trials.

Columns: `number`, `state`, `feasible`, `value` (of one goal, the first unless told), `gain` (the value, larger being
better), `seconds` (that it ran), `params_NAME`, `constraints_NAME` (positive where broken), `metrics_NAME`. A parameter
that nothing read in a trial is missing there: its value says nothing about the trial.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.trial import FrozenTrial, TrialState

from personalization.errors import UsageError
from search_spaces import ChainSpace
from studies.constraints import Constraint, feasible
from studies.trial import MEASURED

if TYPE_CHECKING:
    import pandas as pd

GROUPS = ("calibration", "retrieval", "steering", "training", "architecture", "data", "features", "other")
"""In the order in which they are shown."""
STAGES = {"prompt": "retrieval", "adapter": "training", "head": "training"}
"""Groups of stages that are not groups themselves."""
SHAPES = ("rank", "targets", "prefix_tokens", "start", "count", "place", "groups", "head", "adapter", "level")
"""Parameters of a trained or steering stage that say what is built, not how it is trained."""
ITEMS = "foreign_items"
"""Trial attribute: name -> items that went into the trial, of which there may be several."""


@dataclass(frozen=True)
class Parameter:
    """One parameter. `discrete`: its values are told apart one by one; `items`: a trial has several at once;
    `read_when`: what others must be for it to be read, in words."""

    name: str
    group: str
    discrete: bool
    items: bool = False
    distribution: BaseDistribution | None = None
    read_when: str = ""


@dataclass(frozen=True)
class History:
    """The finished trials of one study. `fields`: what else is known of a trial that nobody set, which has value scores
    and nothing more; `metric`: what `value` is, one of the study's `goals`; `bounds`: constraint ->
    its bound, where known."""

    name: str
    metric: str
    maximize: bool
    trials: pd.DataFrame
    parameters: Mapping[str, Parameter]
    bounds: Mapping[str, Constraint] = field(default_factory=dict)
    foreign: bool = False
    goals: Sequence[str] = ()
    fields: Mapping[str, Parameter] = field(default_factory=dict)

    @property
    def feasible(self) -> pd.DataFrame:
        """The trials that keep all constraints."""
        return self.trials[self.trials["feasible"]]

    @property
    def constraints(self) -> list[str]:
        """Names of the constraints."""
        return [name.removeprefix("constraints_") for name in self.trials if name.startswith("constraints_")]

    def of_group(self, group: str | None) -> History:
        """With the parameters of one group; UsageError where there are none."""
        if group is None:
            return self
        kept, told = (
            {name: known for name, known in of.items() if known.group == group} for of in (self.parameters, self.fields)
        )
        if not kept and not told:
            known = (*self.parameters.values(), *self.fields.values())
            there = ", ".join(dict.fromkeys(one.group for one in known)) or "none"
            raise UsageError(f"no parameter of {self.name} is in group {group!r}; there are {there}")
        return replace(self, parameters=kept, fields=told)


def history(
    name: str,
    trials: Sequence[FrozenTrial],
    goal: tuple[str, str],
    rooms: ChainSpace | None = None,
    groups: Mapping[str, str] | None = None,
    place: int = 0,
) -> History:
    """The history of finished trials; one whose value is not finite has failed. `goal`: metric and direction; `rooms`:
    the space of a chain, which knows what is read and to which stage a parameter belongs; `groups`: parameter -> group,
    of any other origin; `place`: of the goal among a trial's values."""
    import pandas as pd

    distributions: dict[str, BaseDistribution] = {}
    for trial in trials:
        distributions |= trial.distributions
    idle = _Idle(rooms, distributions) if rooms is not None else None
    sign = 1.0 if goal[1] == "maximize" else -1.0
    rows = []
    for trial in trials:
        value = _value(trial, place)
        state = TrialState.FAIL if trial.state == TrialState.COMPLETE and value is None else trial.state
        kept = value is not None and feasible(trial)
        row = {
            "number": trial.number,
            "state": state.name,
            "feasible": kept,
            "value": np.nan if value is None else value,
            "seconds": np.nan if trial.duration is None else trial.duration.total_seconds(),
        }
        params = trial.params
        unread = idle.at(params) if idle is not None else ()
        row |= {f"params_{key}": there(given) for key, given in params.items() if key not in unread}
        row |= {f"params_{key}": given for key, given in items_of(trial).items()}
        row |= {f"constraints_{key}": given for key, given in trial.constraints.items()}
        row |= {f"metrics_{key}": given for key, given in metrics_of(trial).items()}
        rows.append(row)
    frame = pd.DataFrame(rows) if rows else pd.DataFrame(columns=["number", "state", "feasible", "value", "seconds"])
    frame.insert(4, "gain", sign * frame["value"].astype(float))
    frame["feasible"] = frame["feasible"].astype(bool)
    items = {key for trial in trials for key in items_of(trial)}
    parameters = {
        key: Parameter(
            key, _group(key, rooms, groups or {}), discrete(found), False, found, _read_when(key, rooms, distributions)
        )
        for key, found in distributions.items()
    }
    parameters |= {key: Parameter(key, (groups or {}).get(key, "features"), True, items=True) for key in sorted(items)}
    for key in parameters:
        if f"params_{key}" not in frame:
            frame[f"params_{key}"] = None
    return History(name, goal[0], goal[1] == "maximize", frame, parameters)


def _value(trial: FrozenTrial, place: int) -> float | None:
    """The value of a goal; None where the trial has none, or one that does not compare, which Optuna stores as well."""
    value = trial.values[place] if trial.state == TrialState.COMPLETE and trial.values else None
    return value if value is not None and math.isfinite(value) else None


def items_of(trial: FrozenTrial) -> dict[str, tuple[str, ...]]:
    """Name -> items that went into a trial; what others keep under this name is none."""
    found = trial.user_attrs.get(ITEMS)
    told = found if isinstance(found, dict) else {}
    return {key: tuple(map(str, given)) for key, given in told.items() if isinstance(given, list)}


def metrics_of(trial: FrozenTrial) -> dict[str, float]:
    """Name -> number that was measured of a trial; what others keep under this name is none."""
    found = trial.user_attrs.get(MEASURED)
    told = found.get("metrics") if isinstance(found, dict) else None
    return {key: given for key, given in told.items() if is_number(given)} if isinstance(told, dict) else {}


def is_number(value: Any) -> bool:
    """Whether a value can be ordered and averaged: yes and no cannot."""
    return isinstance(value, int | float | np.number) and not isinstance(value, bool | np.bool_)


def there(value: Any) -> Any:
    """A value; None, which other studies may have as a choice, by its name, since it is not missing."""
    return "None" if value is None else value


def choice_of(distribution: CategoricalDistribution, held: Any) -> Any:
    """The choice that a column holds; what is no choice as it is."""
    return next((choice for choice in distribution.choices if there(choice) == held), held)


def discrete(distribution: BaseDistribution) -> bool:
    """Whether the values of a distribution are told apart one by one."""
    return not (isinstance(distribution, FloatDistribution) and distribution.step is None)


def _group(name: str, rooms: ChainSpace | None, groups: Mapping[str, str]) -> str:
    if rooms is None or name not in rooms.names:
        return groups.get(name, "other")
    stage, _, own = rooms.names[name].targets[0].partition(".")
    if stage in ("adapter", "head") and own in SHAPES:
        return "architecture"
    return STAGES.get(stage, stage)


def _read_when(name: str, rooms: ChainSpace | None, distributions: Mapping[str, BaseDistribution]) -> str:
    if rooms is None or name not in rooms.names:
        return ""
    return rooms.read_when(name, {key: found for key, found in distributions.items() if key in rooms.names})


class _Idle:
    """What nothing reads at a point. Conditions ask which choice it is, whether a number is 0, and whether it is above
    1, so that points alike in these are answered once.

    What a condition asks for is read where it is at its baseline: that is what turned the others off.
    """

    def __init__(self, rooms: ChainSpace, distributions: Mapping[str, BaseDistribution]) -> None:
        self._rooms = rooms
        self._choices = {name for name, d in distributions.items() if isinstance(d, CategoricalDistribution)}
        self._known: dict[tuple[Any, ...], set[str]] = {}
        self._asked_for = {other for alternatives in rooms.read.values() for one in alternatives for other in one}

    def at(self, params: Mapping[str, Any]) -> set[str]:
        key = tuple((n, v) if n in self._choices else (n, v == 0, v == 1, v > 1) for n, v in params.items())
        if key not in self._known:
            named = {name: value for name, value in params.items() if name in self._rooms.names}
            found = self._rooms.idle(named) & named.keys()
            self._known[key] = {name for name in found if not self._is_off(name, named[name])}
        return self._known[key]

    def _is_off(self, name: str, value: Any) -> bool:
        known = self._rooms.names[name]
        baseline = self._rooms.BASELINE
        at_baseline = all(baseline.get_value(full) == given for full, given in known.values(value).items())
        return at_baseline and not self._asked_for.isdisjoint(known.targets)


def together(histories: Sequence[History]) -> History:
    """Several studies as one: `gain` is a trial's rank among the feasible of its own study, from 0 to 1. One study
    stays as it is.

    Values of different data or metrics do not compare, nor do bounds; ranks do. Parameters of one name are taken for
    the same one.
    """
    import pandas as pd

    if len(histories) == 1:
        return histories[0]
    frames = []
    for found in histories:
        frame = found.trials[[name for name in found.trials if not name.startswith("constraints_")]].copy()
        rank = frame["gain"].where(frame["feasible"]).rank()
        frame["gain"] = (rank - 0.5) / max(1, int(frame["feasible"].sum()))
        frame["value"] = frame["gain"]
        frame.insert(0, "study", found.name)
        frames.append(frame)
    parameters: dict[str, Parameter] = {}
    fields: dict[str, Parameter] = {}
    for found in histories:
        parameters |= found.parameters
        fields |= found.fields
    name = ", ".join(found.name for found in histories)
    metrics = " and ".join(dict.fromkeys(found.metric for found in histories))
    whole = pd.concat(frames, ignore_index=True)
    return History(name, f"rank by {metrics}", True, whole, parameters, fields=fields)
