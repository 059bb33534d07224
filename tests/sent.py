"""Records for MLflow, and what arrived there."""

from pathlib import Path

import pytest

from personalization.databases import sqlite_file
from tracking.spool import Spool

mlflow = pytest.importorskip("mlflow")
from mlflow import MlflowClient  # noqa: E402

from tracking.mlflow_tracker import Patience  # noqa: E402


class Ended(Patience):
    """A parent that has ended: the sender stops once the spool is empty. `meanwhile` is called before that, once."""

    def __init__(self, meanwhile=None) -> None:
        self._meanwhile = meanwhile

    def parent_ended(self) -> bool:
        meanwhile, self._meanwhile = self._meanwhile, None
        if meanwhile is not None:
            meanwhile()
        return meanwhile is None

    def is_over(self, _=None) -> bool:
        return False


def trial(number: int, **changes):
    return {
        "kind": "trial",
        "number": number,
        "state": "COMPLETE",
        "params": {"beta": 0.5 + number},
        "metrics": {"accuracy": 0.1 * number, "entropy": 1.0},
        "violations": {"entropy": -0.4},
        "started_ms": 1,
        "ended_ms": 2,
        "failure": None,
        "duplicate_of": None,
        "feasible": True,
        **changes,
    }


def begun(home: Path, study: str, trials: int = 0, study_id: str = "id") -> Spool:
    """A spool with the records of a study and of its first trials."""
    spool = Spool(home, study, study_id)
    told = {"started_ms": 1, "params": {"sampler": "tpe"}, "tags": {"model": "m"}}
    spool.append({"kind": "study", "study": study, **told})
    for number in range(trials):
        spool.append(trial(number))
    return spool


def result(name: str, key: str, folder: Path):
    return trial(0) | {"kind": "result", "name": name, "key": key, "folder": str(folder), "tags": {}}


def file_of(uri: str) -> Path:
    return sqlite_file(uri)


def runs(uri: str, study: str):
    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name(study)
    return client, client.search_runs([experiment.experiment_id], max_results=1000)


def run_of(found, name: str):
    return next(run for run in found if run.info.run_name == name)


def names(uri: str, study: str) -> list[str]:
    return sorted(run.info.run_name for run in runs(uri, study)[1])
