"""A study's records as MLflow's experiment and runs.

One experiment for a study, a parent run for the study, a child run for each trial and for the baseline, the best and
the promoted result. Each run carries the tag `chamtune.key`, and the experiment a random id of its own.

MLflow is a projection that can be rebuilt. Connecting compares it with the notes of what was sent: a deleted
experiment or run is restored; where one is gone for good, or the experiment is another one, or the spool is another
file, everything is replayed from the first record, and trials that are complete are passed over. So nothing is logged
twice, also where the fate of a record is unknown after a crash.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import uuid
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Experiment, LifecycleStage, Metric, Param, RunStatus, RunTag, ViewType
from mlflow.exceptions import MlflowException

from personalization.databases import is_sqlite, kept, without_secrets
from personalization.errors import first_line
from tracking.registry import crown, newest_version, register
from tracking.runs import every_run
from tracking.spool import VIEW_NAME, Spool

log = logging.getLogger("tracking")

FILE_TRIES = 3
"""How often files that cannot be read or copied are tried before their record is set aside."""

PARENT_TAG = "mlflow.parentRunId"
KEY_TAG = "chamtune.key"
MARK_TAG = "chamtune.id"
EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}
"""Opens the experiment on its runs and not on the pages for chat applications. MLflow has no public name for it."""

VIEW_TAG = f"mlflow.sharedViewState.{VIEW_NAME}"
"""Where MLflow's page looks for a view that a link names. It is the page's own, and no part of MLflow's API."""

Record = dict[str, Any]


class Projection:
    """Writes one study's records. `runs` maps the keys of the experiment's runs to their ids."""

    def __init__(self, client: MlflowClient, spool: Spool, uri: str) -> None:
        self.client, self.spool, self.uri = client, spool, uri
        self.connect()

    def connect(self) -> None:
        """Compare MLflow with the notes, restore what was deleted, and go back to the first record if some are gone."""
        experiment = self._experiment()
        self.experiment = experiment.experiment_id
        self.runs, self.complete = self._known_runs()
        self.faults = 0
        notes = self.spool.sent()
        mark = experiment.tags[MARK_TAG]
        if notes.get("mark") != mark or self._lost(notes):
            notes = {"offset": 0, "refused": {}}
        self.notes = {**notes, "mark": mark, "place": kept(self.uri), "experiment": self.experiment}
        self._again = set(notes["refused"])

    def _experiment(self) -> Experiment:
        name = self.spool.study
        found = self.client.get_experiment_by_name(name)
        if found is None:
            tags = {**EXPERIMENT_TAGS, MARK_TAG: uuid.uuid4().hex}
            beside = (self.spool.home.resolve() / "mlartifacts" / name).as_uri()  # a server has a place of its own
            made = self.client.create_experiment(name, beside if is_sqlite(self.uri) else None, tags)
            return self.client.get_experiment(made)
        if found.lifecycle_stage == LifecycleStage.DELETED:
            self.client.restore_experiment(found.experiment_id)
        if MARK_TAG not in found.tags:
            self.client.set_experiment_tag(found.experiment_id, MARK_TAG, uuid.uuid4().hex)
        return self.client.get_experiment(found.experiment_id)

    def _known_runs(self) -> tuple[dict[str, str], set[str]]:
        """The runs by key, deleted ones restored, and the keys of those that have ended."""
        active: dict[str, str] = {}
        deleted: dict[str, str] = {}
        ended: set[str] = set()
        for run in every_run(self.client, self.experiment, run_view_type=ViewType.ALL):
            key = run.data.tags.get(KEY_TAG, "")
            if not key.startswith(f"{self.spool.study_id}/"):
                continue
            if RunStatus.is_terminated(RunStatus.from_string(run.info.status)):
                ended.add(key)
            stage = active if run.info.lifecycle_stage == LifecycleStage.ACTIVE else deleted
            stage[key] = run.info.run_id
        for key in deleted.keys() - active.keys():
            self.client.restore_run(deleted[key])
        return deleted | active, ended

    def _lost(self, notes: Record) -> bool:
        """Whether something that was sent is no longer there."""
        sent = [
            record
            for record, end in self.spool.records()
            if end <= notes["offset"] and str(end) not in notes["refused"]
        ]
        if any(key is not None and key not in self.runs for key in map(self._key, sent)):
            return True
        models = {(record["name"], record["digest"]) for record in sent if record["kind"] == "model"}
        return any(newest_version(self.client, *model) is None for model in models)

    def _key(self, record: Record) -> str | None:
        """The key of the run that a record makes."""
        name = {"study": "study", "trial": "trial/{number}", "result": "result/{key}"}.get(record["kind"])
        return None if name is None else f"{self.spool.study_id}/{name.format_map(record)}"

    def pending(self) -> list[tuple[Record, int]]:
        """What is to be sent: once what was not taken before, then the new records, each with the offset behind it."""
        again, self._again = self._again, set()
        refused = [(record, end) for record, end in self.spool.records() if str(end) in again] if again else []
        return refused + self.spool.records(self.notes["offset"])

    def deliver(self, record: Record, end: int) -> bool:
        """Log one record and note it. Safe to repeat. False where MLflow was changed meanwhile: read `pending` anew."""
        reason: str | None = None
        try:
            if not (record["kind"] == "trial" and self._key(record) in self.complete):
                HANDLERS[record["kind"]](self, record)
        except OSError as error:
            self.faults += 1
            if self.faults < FILE_TRIES:
                raise
            reason = without_secrets(first_line(error), self.uri)
        except MlflowException as error:
            status = error.get_http_status_code()
            if status in (HTTPStatus.BAD_REQUEST, HTTPStatus.NOT_FOUND) and not self._stands(record):
                self.connect()
                return False
            if status != HTTPStatus.BAD_REQUEST:
                raise
            reason = without_secrets(first_line(error), self.uri)
        self.faults = 0
        self._note(end, reason)
        return True

    def _note(self, end: int, reason: str | None) -> None:
        refused = {at: why for at, why in self.notes["refused"].items() if at != str(end)}
        if reason is not None:
            log.error("not taken by MLflow, tried again by the next run: record before byte %d: %s", end, reason)
            refused[str(end)] = reason
        self.notes |= {"head": self.spool.head(), "offset": max(end, self.notes["offset"]), "refused": refused}
        self.spool.note_sent(self.notes)

    def _stands(self, record: Record) -> bool:
        """Whether the experiment, the parent run and the record's own run are there and not deleted."""
        keys = (f"{self.spool.study_id}/study", self._key(record))
        try:
            stages = [self.client.get_experiment(self.experiment).lifecycle_stage]
            stages += [self.client.get_run(self.runs[key]).info.lifecycle_stage for key in keys if key in self.runs]
        except MlflowException as error:
            if error.get_http_status_code() != HTTPStatus.NOT_FOUND:
                raise
            return False
        return all(stage == LifecycleStage.ACTIVE for stage in stages)

    def run(self, key: str, name: str, tags: dict[str, str], start_ms: int, parent: str | None) -> str:
        """The id of the run with this key, created if need be."""
        key = f"{self.spool.study_id}/{key}"
        if key not in self.runs:
            tags = {**tags, KEY_TAG: key, **({PARENT_TAG: parent} if parent else {})}
            run = self.client.create_run(self.experiment, start_time=start_ms, tags=tags, run_name=name)
            self.runs[key] = run.info.run_id
        return self.runs[key]

    def parent(self, record: Record) -> str:
        """The id of the study's run; made now where the spool has lost its record."""
        return self.run("study", self.spool.study, {"optuna.study": self.spool.study}, record["ended_ms"], None)

    def log(self, run_id: str, record: Record) -> None:
        """One batch call: params, metrics, and curves with their steps.

        MLflow keeps NaN and stores an infinity as the largest float, so that a tag names what is not finite.
        """
        at = record["ended_ms"]
        named = record["metrics"] | {f"constraint/{k}": v for k, v in record.get("violations", {}).items()}
        metrics = [Metric(name, float(value), at, 0) for name, value in named.items()]
        for name, values in record.get("curves", {}).items():
            metrics += [Metric(name, float(value), at, step) for step, value in enumerate(values, start=1)]
        params = [Param(name, str(value)) for name, value in record["params"].items()]
        odd = ", ".join(f"{name} is {value}" for name, value in named.items() if isinstance(value, str))
        tags = [RunTag("not_finite", odd[:5000])] if odd else []
        self.client.log_batch(run_id, metrics=metrics, params=params, tags=tags)


def log_study(projection: Projection, record: Record) -> None:
    """The study itself: the parent run."""
    run_id = projection.run("study", record["study"], record["tags"], record["started_ms"], None)
    projection.client.log_batch(
        run_id,
        params=[Param(k, str(v)[:6000]) for k, v in record["params"].items()],
        tags=[RunTag(k, str(v)) for k, v in record["tags"].items()],
    )
    if "optimize" in record:
        projection.client.set_experiment_tag(projection.experiment, VIEW_TAG, json.dumps(_view(record)))


def _view(record: Record) -> Record:
    """The runs as a table, best first: what was optimised and bounded, feasibility, and what was varied."""
    metrics = [f"metrics.`{name}`" for name in dict.fromkeys([*record["optimize"], *record["constraints"]])]
    first, direction = next(iter(record["optimize"].items()))
    return {
        "selectedColumns": [*metrics, "tags.`feasible`", *(f"params.`{name}`" for name in record["varied"])],
        "orderByKey": f"metrics.`{first}`",
        "orderByAsc": direction == "minimize",
    }


def log_trial(projection: Projection, record: Record) -> None:
    """A trial, below the study; its end is logged last, so that a run that has ended is complete."""
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
    parent = projection.parent(record)
    run_id = projection.run(f"trial/{record['number']}", name, tags, record["started_ms"], parent)
    projection.log(run_id, record)
    status = "FINISHED" if record["state"] in ("COMPLETE", "PRUNED") else "FAILED"
    projection.client.set_terminated(run_id, status, record["ended_ms"])


def log_result(projection: Projection, record: Record) -> None:
    """A result with its folder of artifacts: baseline, best or promoted."""
    name = record["name"]
    parent = projection.parent(record)
    tags = {"optuna.study": projection.spool.study, "result": name, **record.get("tags", {})}
    run_id = projection.run(f"result/{record['key']}", name, tags, record["started_ms"], parent)
    projection.log(run_id, record)
    if not os.path.isdir(record["folder"]):  # MLflow logs nothing then, and says nothing
        raise FileNotFoundError(errno.ENOENT, "no such folder", record["folder"])
    projection.client.log_artifacts(run_id, record["folder"])
    projection.client.set_terminated(run_id, "FINISHED", record["ended_ms"])


def log_summary(projection: Projection, record: Record) -> None:
    """The study's own figures, on the parent run; a resumed study logs them again."""
    run_id = projection.parent(record)
    at = record["ended_ms"]
    metrics = [Metric(name, float(value), at, record["step"]) for name, value in record["metrics"].items()]
    projection.client.log_batch(run_id, metrics=metrics, tags=[RunTag(k, str(v)) for k, v in record["tags"].items()])
    projection.client.set_terminated(run_id, "FINISHED", at)


def log_model(projection: Projection, record: Record) -> None:
    """The promoted config as a version in the registry."""
    register(projection.client, record, projection.runs.get(f"{projection.spool.study_id}/result/{record['key']}"))


HANDLERS: dict[str, Callable[[Projection, Record], None]] = {
    "study": log_study,
    "trial": log_trial,
    "result": log_result,
    "summary": log_summary,
    "model": log_model,
    "rollback": lambda projection, record: crown(projection.client, record),  # the alias follows what stands there
}
