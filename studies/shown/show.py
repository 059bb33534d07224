"""What the storage knows about its studies, as plain data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import optuna
from optuna.trial import TrialState

from studies.constraints import feasible
from studies.results import changed
from studies.storage import may_exist, open_storage, storage_url
from studies.study import RECORD, find_study, finished, ranked, stored_spec, study_names
from studies.trial import MEASURED

TOP = 10


def _counts(study: optuna.Study) -> dict[str, Any]:
    trials = study.get_trials(deepcopy=False)
    ended = finished(trials)
    return {
        "study": study.study_name,
        "trials": len(ended),
        "complete": sum(t.state == TrialState.COMPLETE for t in ended),
        "failed": sum(t.state == TrialState.FAIL for t in ended),
        "pruned": sum(t.state == TrialState.PRUNED for t in ended),
        "running": sum(t.state == TrialState.RUNNING for t in trials),
        "feasible": sum(map(feasible, ended)),
    }


def list_studies(home: Path, url: str | None) -> list[dict[str, Any]]:
    """A row for each study: counts and the best feasible value of its first metric."""
    where = storage_url(home, url)
    if not may_exist(where):
        return []
    storage = open_storage(where)
    rows = []
    for name in study_names(storage):
        study = optuna.load_study(study_name=name, storage=storage)
        row = _counts(study)
        if RECORD in study.user_attrs:
            spec = stored_spec(study)
            best = next(ranked(study.get_trials(deepcopy=False), dict(spec.optimize)), None)
            metric = next(iter(spec.optimize))
            row |= {"objective": spec.method, "metric": metric, "best": best.values[0] if best else None}
        rows.append(row)
    return rows


def describe_study(name: str, home: Path, url: str | None) -> dict[str, Any]:
    """Spec, counts, failures and the best feasible trials of a study."""
    study = find_study(name, home, url)
    spec = stored_spec(study)
    rooms = spec.space_of.starting_from(study.user_attrs[RECORD].get("started", {}))
    trials = study.get_trials(deepcopy=False)
    best = [
        {
            "trial": t.number,
            "params": rooms.decode(t.params).flat(),
            "changed": changed(rooms.decode(t.params), rooms.BASELINE),
            "metrics": t.user_attrs[MEASURED]["metrics"],
        }
        for t, _ in zip(ranked(trials, dict(spec.optimize)), range(TOP), strict=False)
    ]
    failures = {
        t.number: str(t.user_attrs.get("failure", "")).strip().splitlines()[-1:]
        for t in finished(trials)
        if t.state == TrialState.FAIL
    }
    return {
        **_counts(study),
        "method": spec.method,
        "spec": spec.model_dump(mode="json"),
        "data": study.user_attrs[RECORD]["data"],
        "model": study.user_attrs[RECORD]["model"],
        "best": best,
        "failures": {str(number): (line or ["unknown"])[0] for number, line in failures.items()},
    }
