"""Replays a spool to MLflow: `python -m tracking.mlflow_tracker HOME STUDY STUDY_ID URI`.

One experiment for a study, a parent run for the study, a child run for each trial and for the baseline, the best and
the promoted result. Each run carries the tag `chamtune.key`, and the keys that MLflow has are read at the start, so
that a record whose fate is unknown after a crash is not logged twice. Notes are kept after every record. A database
that is not the noted one is filled anew from the first record: MLflow is a projection that can be rebuilt.

While MLflow is out of reach the sender tries again, with growing pauses, until its parent has ended and a grace period
is over. A record that MLflow refuses for what it says goes to `STUDY.rejected.jsonl` with the reason.
"""

from __future__ import annotations

import json
import logging
import os
import select
import sqlite3
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from tenacity import RetryCallState, Retrying, wait_exponential

from personalization.databases import is_sqlite, sqlite_file
from personalization.files import locked
from tracking.spool import Spool

log = logging.getLogger("tracking")

GRACE_S = 15.0
"""How long to go on trying once the parent has ended."""

CHAMPION = "champion"
PARENT_TAG = "mlflow.parentRunId"
KEY_TAG = "chamtune.key"
EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}
"""Opens the experiment on its runs and not on the pages for chat applications."""

REFUSED_CODES = ("INVALID_PARAMETER_VALUE", "BAD_REQUEST")

Record = dict[str, Any]


class Projection:
    """Writes one study's records. `runs` maps the keys of the experiment's runs to their ids."""

    def __init__(self, client: MlflowClient, spool: Spool, uri: str) -> None:
        self.client, self.spool = client, spool
        experiment = client.get_experiment_by_name(spool.study)
        self.experiment = (
            experiment.experiment_id
            if experiment
            else client.create_experiment(spool.study, _artifact_location(spool, uri), EXPERIMENT_TAGS)
        )
        self.runs = self._known_runs() if experiment else {}
        self.notes = spool.sent()
        if (self.notes.get("uri"), self.notes.get("experiment")) != (uri, self.experiment):
            self.notes = {"uri": uri, "experiment": self.experiment, "offset": 0}

    def _known_runs(self) -> dict[str, str]:
        found: dict[str, str] = {}
        token: str | None = None
        while True:
            page = self.client.search_runs([self.experiment], max_results=1000, page_token=token)
            found |= {run.data.tags[KEY_TAG]: run.info.run_id for run in page if KEY_TAG in run.data.tags}
            token = page.token
            if not token:
                return found

    def replay(self, record: Record, end: int) -> None:
        """Log one record and note it. Safe to repeat."""
        HANDLERS[record["kind"]](self, record)
        self.notes["offset"] = end
        self.spool.note_sent(self.notes)

    def run(self, key: str, name: str, tags: dict[str, str], start_ms: int, parent: str | None) -> str:
        """The id of the run with this key, created if need be."""
        key = f"{self.spool.study_id}/{key}"
        if key not in self.runs:
            tags = {**tags, KEY_TAG: key, **({PARENT_TAG: parent} if parent else {})}
            run = self.client.create_run(self.experiment, start_time=start_ms, tags=tags, run_name=name)
            self.runs[key] = run.info.run_id
        return self.runs[key]

    def known(self, key: str) -> str:
        """The id of a run of this study that was logged before."""
        return self.runs[f"{self.spool.study_id}/{key}"]

    def log(self, run_id: str, record: Record) -> None:
        """One batch call: params, metrics, and curves with their steps."""
        at = record["ended_ms"]
        metrics = [Metric(name, float(value), at, 0) for name, value in record["metrics"].items()]
        metrics += [
            Metric(f"constraint/{name}", float(value), at, 0) for name, value in record.get("violations", {}).items()
        ]
        for name, values in record.get("curves", {}).items():
            metrics += [Metric(name, float(value), at, step) for step, value in enumerate(values, start=1)]
        params = [Param(name, str(value)) for name, value in record["params"].items()]
        self.client.log_batch(run_id, metrics=metrics, params=params)


def _artifact_location(spool: Spool, uri: str) -> str | None:
    """Beside the database for a local one; a server has a place of its own."""
    if not is_sqlite(uri):
        return None
    return (spool.home.resolve() / "mlartifacts" / spool.study).as_uri()


def log_study(projection: Projection, record: Record) -> None:
    run_id = projection.run("study", record["study"], record["tags"], record["started_ms"], None)
    projection.client.log_batch(run_id, params=[Param(k, str(v)[:6000]) for k, v in record["params"].items()])


def log_trial(projection: Projection, record: Record) -> None:
    tags = {
        "optuna.study": projection.spool.study,
        "optuna.trial_number": str(record["number"]),
        "optuna.state": record["state"],
        "feasible": str(record["feasible"]).lower(),
    }
    if record.get("remarks"):
        tags["remarks"] = "; ".join(record["remarks"])[:5000]
    if record["duplicate_of"] is not None:
        tags["duplicate_of"] = str(record["duplicate_of"])
    if record["failure"]:
        tags["failure"] = record["failure"][-5000:]
    name = f"trial-{record['number']:04d}"
    parent = projection.known("study")
    run_id = projection.run(f"trial/{record['number']}", name, tags, record["started_ms"], parent)
    projection.log(run_id, record)
    status = "FINISHED" if record["state"] in ("COMPLETE", "PRUNED") else "FAILED"
    projection.client.set_terminated(run_id, status, record["ended_ms"])


def log_result(projection: Projection, record: Record) -> None:
    """A result with its folder of artifacts: baseline, best or promoted."""
    name = record["name"]
    parent = projection.known("study")
    tags = {"optuna.study": projection.spool.study, "result": name, **record.get("tags", {})}
    run_id = projection.run(f"result/{record['key']}", name, tags, record["started_ms"], parent)
    projection.log(run_id, record)
    projection.client.log_artifacts(run_id, record["folder"])
    projection.client.set_terminated(run_id, "FINISHED", record["ended_ms"])


def log_summary(projection: Projection, record: Record) -> None:
    """The study's own figures, on the parent run; a resumed study logs them again."""
    run_id = projection.known("study")
    at = record["ended_ms"]
    metrics = [Metric(name, float(value), at, record["step"]) for name, value in record["metrics"].items()]
    projection.client.log_batch(run_id, metrics=metrics, tags=[RunTag(k, str(v)) for k, v in record["tags"].items()])
    projection.client.set_terminated(run_id, "FINISHED", at)


def register(projection: Projection, record: Record) -> None:
    """A version of the deploy config in the registry, with the alias on it. Its generation identifies it."""
    client, name, generation = projection.client, record["name"], str(record["generation"])
    if not client.search_registered_models(f"name = '{name}'"):
        client.create_registered_model(name)
    version = _version(client, name, generation)
    if version is None:
        run_id = projection.known(f"result/{record['key']}")
        created = client.create_model_version(
            name, source=f"runs:/{run_id}/deploy", run_id=run_id, tags={"generation": generation}
        )
        version = str(created.version)
    client.set_registered_model_alias(name, CHAMPION, version)


def roll_back(projection: Projection, record: Record) -> None:
    """Put the alias back on the version of an earlier generation."""
    version = _version(projection.client, record["name"], str(record["generation"]))
    if version is not None:
        projection.client.set_registered_model_alias(record["name"], CHAMPION, version)


def _version(client: MlflowClient, name: str, generation: str) -> str | None:
    for version in client.search_model_versions(f"name = '{name}'"):
        if version.tags.get("generation") == generation:
            return str(version.version)
    return None


HANDLERS: dict[str, Callable[[Projection, Record], None]] = {
    "study": log_study,
    "trial": log_trial,
    "result": log_result,
    "summary": log_summary,
    "model": register,
    "rollback": roll_back,
}


class Patience:
    """Whether to go on: always while the parent lives, then for the grace period."""

    def __init__(self) -> None:
        self._ended_at: float | None = None

    def parent_ended(self) -> bool:
        """Whether the parent has closed our standard input, be it by dying."""
        if self._ended_at is None and select.select([sys.stdin], [], [], 0)[0] and not os.read(0, 4096):
            self._ended_at = time.monotonic()
        return self._ended_at is not None

    def is_over(self, _: RetryCallState | None = None) -> bool:
        """Whether the grace period has passed, too."""
        return self.parent_ended() and time.monotonic() - (self._ended_at or 0.0) > GRACE_S


def send(spool: Spool, uri: str) -> bool:
    """Replay until the spool is empty and the parent has ended; whether everything was sent."""
    patience = Patience()
    with locked(spool.path.with_suffix(".lock")):
        retrying = Retrying(
            wait=wait_exponential(0.5, max=10),
            stop=patience.is_over,
            retry=lambda state: state.outcome is not None and isinstance(state.outcome.exception(), MlflowException),
            before_sleep=lambda state: log.warning("MLflow is out of reach: %s", _reason(state)),
            retry_error_callback=lambda _: None,
        )
        projection: Projection | None = retrying(lambda: _connect(spool, uri))
        while projection is not None:
            records = spool.records(projection.notes["offset"])
            for record, end in records:
                if not retrying(lambda record=record, end=end: _replay(projection, record, end)):
                    return False
            if not records:
                if patience.parent_ended() and not spool.records(projection.notes["offset"]):
                    return True
                time.sleep(0.2)
        return False


def _connect(spool: Spool, uri: str) -> Projection:
    projection = Projection(MlflowClient(tracking_uri=uri, registry_uri=uri), spool, uri)
    file = sqlite_file(uri)
    if file is not None:
        with sqlite3.connect(file, timeout=60) as database:
            database.execute("PRAGMA journal_mode=WAL")
        database.close()
    return projection


def _replay(projection: Projection, record: Record, end: int) -> bool:
    try:
        projection.replay(record, end)
    except (MlflowException, OSError, KeyError) as error:
        if isinstance(error, MlflowException) and error.error_code not in REFUSED_CODES:
            raise
        rejected = projection.spool.path.with_suffix(".rejected.jsonl")
        with rejected.open("a") as file:
            file.write(json.dumps({"reason": repr(error), "record": record}) + "\n")
        log.error("MLflow refused a record, see %s: %s", rejected, error)
        projection.notes["offset"] = end
        projection.spool.note_sent(projection.notes)
    return True


def _reason(state: RetryCallState) -> str:
    error = state.outcome.exception() if state.outcome is not None else None
    return str(error).splitlines()[0] if error else "unknown"


def main() -> None:
    os.nice(19)
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s")
    home, study, study_id, uri = sys.argv[1:]
    sys.exit(0 if send(Spool(Path(home), study, study_id), uri) else 75)


if __name__ == "__main__":
    main()
