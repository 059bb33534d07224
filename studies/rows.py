"""The finished trials of a study, read row by row: what `study.get_trials` gives, in a third of its time.

Optuna makes an object of every parameter, value and attribute (10,000 trials with six parameters: 120,000), and reads
each distribution twice. A command that begins, reads once and ends waits for nothing else so long. Here the tables are
read as they are, which is bound to their layout: that of `SCHEMA`, which every storage states. One of another layout is
read by Optuna. Only finished trials are read: no row of theirs changes any more, so several queries see one state.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

import sqlalchemy
from optuna.distributions import BaseDistribution, json_to_distribution
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import Connection, DateTime, column, table

from studies.storage import uncollected

SCHEMA = 12
"""Layout of Optuna's tables that this file reads (`version_info.schema_version`)."""
ENDED = {state.name: state for state in TrialState if state.is_finished()}
ODD = {"INF_POS": math.inf, "INF_NEG": -math.inf, "NAN": math.nan}
"""Numbers that are stored by name."""
TRIALS = table(
    "trials", column("trial_id"), column("number"), column("study_id"), column("state"),
    column("datetime_start", DateTime), column("datetime_complete", DateTime),
)  # fmt: skip


@uncollected()
def finished_trials(storage: RDBStorage, name: str) -> list[FrozenTrial]:
    """The finished trials of a study by name, in order of their numbers."""
    number = storage.get_study_id_from_name(name)
    with storage.engine.connect() as connection:
        versions = table("version_info", column("schema_version"))
        if connection.scalar(sqlalchemy.select(versions.c.schema_version)) == SCHEMA:
            return sorted(_trials(connection, number), key=lambda trial: trial.number)
    return storage.get_all_trials(number, deepcopy=False, states=tuple(ENDED.values()))


def _trials(connection: Connection, study: int) -> Iterator[FrozenTrial]:
    own = (TRIALS.c.study_id == study) & TRIALS.c.state.in_(tuple(ENDED))
    heads = connection.execute(sqlalchemy.select(*(c for c in TRIALS.c if c is not TRIALS.c.study_id)).where(own))
    trials = heads.all()
    params, distributions = defaultdict[int, dict[str, Any]](dict), defaultdict[int, dict[str, BaseDistribution]](dict)
    for trial, key, value, told in _parts(
        connection, own, "trial_params", "param_id", "param_name", "param_value", "distribution_json"
    ):
        distributions[trial][key] = found = _distribution(told)
        params[trial][key] = found.to_external_repr(value)
    values, steps = defaultdict[int, list[float]](list), defaultdict[int, dict[int, float]](dict)
    for trial, _, value, kind in _parts(
        connection, own, "trial_values", "objective", "objective", "value", "value_type"
    ):
        values[trial].append(ODD.get(kind, value))
    told = ("trial_intermediate_values", "step", "step", "intermediate_value", "intermediate_value_type")
    for trial, step, value, kind in _parts(connection, own, *told):
        steps[trial][step] = ODD.get(kind, value)
    user, system = (_attributes(connection, own, f"trial_{kind}_attributes") for kind in ("user", "system"))
    for trial, at, state, start, end in trials:
        yield FrozenTrial(
            number=at,
            state=ENDED[state],
            value=None,
            values=values.get(trial),
            datetime_start=_local(start),
            datetime_complete=_local(end),
            params=params[trial],
            distributions=distributions[trial],
            user_attrs=user[trial],
            system_attrs=system[trial],
            intermediate_values=steps[trial],
            trial_id=trial,
        )


def _parts(connection: Connection, own: Any, name: str, order: str, *columns: str) -> Iterator[tuple[Any, ...]]:
    """The rows of one table that belong to these trials: trial and the columns, in the order of one of them."""
    part = table(name, *(column(c) for c in dict.fromkeys(("trial_id", order, *columns))))
    chosen = sqlalchemy.select(part.c.trial_id, *(part.c[c] for c in columns))
    joined = chosen.join(TRIALS, TRIALS.c.trial_id == part.c.trial_id).where(own)
    return map(tuple, connection.execute(joined.order_by(part.c[order])))


def _attributes(connection: Connection, own: Any, name: str) -> dict[int, dict[str, Any]]:
    found = defaultdict[int, dict[str, Any]](dict)
    for trial, key, told in _parts(connection, own, name, f"{name.removesuffix('s')}_id", "key", "value_json"):
        found[trial][key] = json.loads(told)
    return found


@lru_cache(maxsize=4096)
def _distribution(told: str) -> BaseDistribution:
    return json_to_distribution(told)


def _local(moment: datetime | None) -> datetime | None:
    """A time that is stored as UTC without saying so, as this machine's, likewise."""
    return None if moment is None else moment.replace(tzinfo=UTC).astimezone().replace(tzinfo=None)
