"""What the storage knows about its studies, as plain data."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from personalization.databases import shown
from personalization.errors import UsageError
from studies.constraints import feasible
from studies.recovery import FAILURE, INTERRUPTED, REPEATED, SURPLUS, WORKER_LOST
from studies.results import changed
from studies.storage import may_exist, open_storage, storage_url
from studies.study import RECORD, find_study, finished, ranked, stored_rooms, stored_spec, study_names
from studies.trial import MEASURED

TOP = 10
REASONS = {
    WORKER_LOST: "its worker died",
    INTERRUPTED: "interrupted",
    SURPLUS: "given back: one trial too many",
    REPEATED: "given back: queued twice",
}
"""What the loop writes of a failure that is not the parameters' -> how it is said."""


def counts_of(name: str, trials: Sequence[FrozenTrial]) -> dict[str, Any]:
    """Trials that count, how they ended, and what is under way; `uncounted`: ended by no fault of their parameters;
    `seconds`: that those which count ran, in all."""
    ended = finished(trials)
    last = max((t.datetime_complete for t in ended if t.datetime_complete is not None), default=None)
    states = [t.state for t in ended]
    return {
        "study": name,
        "trials": len(ended),
        "complete": states.count(TrialState.COMPLETE),
        "pruned": states.count(TrialState.PRUNED),
        "failed": states.count(TrialState.FAIL),
        "uncounted": sum(t.state.is_finished() for t in trials) - len(ended),
        "running": sum(t.state == TrialState.RUNNING for t in trials),
        "waiting": sum(t.state == TrialState.WAITING for t in trials),
        "feasible": sum(map(feasible, ended)),
        "seconds": round(sum(t.duration.total_seconds() for t in ended if t.duration is not None), 3),
        "last": None if last is None else last.isoformat(timespec="seconds"),
    }


def reason_of(trial: FrozenTrial) -> str:
    """Why a trial failed: the last line of what is recorded."""
    last = (str(trial.user_attrs.get(FAILURE) or "").strip().splitlines() or ["no reason is recorded"])[-1]
    return REASONS.get(last, last)


def list_studies(home: Path, url: str | None) -> list[dict[str, Any]]:
    """A row for each study: counts and the best feasible value of its first metric; UsageError where the URL names a
    file that is not there."""
    where = storage_url(home, url)
    if not may_exist(where):
        if url is not None:
            raise UsageError(f"there is no storage {shown(where)}")
        return []
    storage = open_storage(where, reading=True)
    rows = []
    for name in study_names(storage):
        study = optuna.load_study(study_name=name, storage=storage)
        trials = study.get_trials(deepcopy=False)
        row = counts_of(name, trials)
        if RECORD in study.user_attrs:
            spec = stored_spec(study)
            best = next(ranked(trials, spec.optimize), None)
            metric = next(iter(spec.optimize))
            row |= {"objective": spec.method, "metric": metric, "best": best.values[0] if best else None}
        rows.append(row)
    return rows


def describe_study(name: str, home: Path, url: str | None) -> dict[str, Any]:
    """Spec, counts, failures and the best feasible trials of a study."""
    study = find_study(name, home, url)
    spec = stored_spec(study)
    rooms = stored_rooms(study)
    trials = study.get_trials(deepcopy=False)
    best = [
        {
            "trial": t.number,
            "params": rooms.decode(t.params).flat(),
            "changed": changed(rooms.decode(t.params), rooms.BASELINE),
            "metrics": t.user_attrs[MEASURED]["metrics"],
        }
        for t, _ in zip(ranked(trials, spec.optimize), range(TOP), strict=False)
    ]
    return {
        **counts_of(name, trials),
        "method": spec.method,
        "spec": spec.model_dump(mode="json"),
        "data": study.user_attrs[RECORD]["data"],
        "model": study.user_attrs[RECORD]["model"],
        "best": best,
        "failures": {str(t.number): reason_of(t) for t in finished(trials) if t.state == TrialState.FAIL},
    }
