import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from tracking.spool import Sender, Spool, tracking_uri

mlflow = pytest.importorskip("mlflow")
from mlflow import MlflowClient  # noqa: E402


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


def study_record(spool: Spool):
    return {
        "kind": "study",
        "study": spool.study,
        "started_ms": 1,
        "params": {"sampler": "tpe"},
        "tags": {"model": "m"},
    }


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> str:
    """An MLflow database, created once: creating its schema takes seconds."""
    home = tmp_path_factory.mktemp("mlflow") / "a?b %20ü"
    home.mkdir()
    uri = tracking_uri(home, None)
    MlflowClient(tracking_uri=uri).search_experiments()
    assert list(home.parent.iterdir()) == [home]
    return uri


def runs(uri: str, study: str):
    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name(study)
    return client, client.search_runs([experiment.experiment_id], max_results=1000)


def test_study_and_trials_arrive_once_each(tmp_path, store):
    spool = Spool(tmp_path, "once", "id")
    spool.append(study_record(spool))
    for number in range(3):
        spool.append(trial(number))
    spool.append(trial(5, curves={"training/loss": [2.0, 1.5, 1.25]}))
    spool.append(trial(3, state="FAIL", metrics={}, failure="Traceback: boom", feasible=False))
    assert Sender(spool, store).finish(60) == 0
    spool.append(trial(4))
    spool.sent_path.write_text("{ torn")
    assert Sender(spool, store).finish(60) == 0
    client, found = runs(store, "once")
    names = sorted(run.info.run_name for run in found)
    assert names == ["once", "trial-0000", "trial-0001", "trial-0002", "trial-0003", "trial-0004", "trial-0005"]
    parent = next(run for run in found if run.info.run_name == "once")
    second = next(run for run in found if run.info.run_name == "trial-0002")
    failed = next(run for run in found if run.info.run_name == "trial-0003")
    assert second.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert second.data.metrics == {"accuracy": 0.2, "entropy": 1.0, "constraint/entropy": -0.4}
    assert (second.data.params, second.data.tags["feasible"]) == ({"beta": "2.5"}, "true")
    assert (failed.info.status, failed.data.tags["failure"]) == ("FAILED", "Traceback: boom")
    history = client.get_metric_history(second.info.run_id, "accuracy")
    assert len(history) == 1
    trained = next(run for run in found if run.info.run_name == "trial-0005")
    curve = client.get_metric_history(trained.info.run_id, "training/loss")
    assert [(point.step, point.value) for point in curve] == [(1, 2.0), (2, 1.5), (3, 1.25)]


def test_refused_record_is_kept_aside_and_the_rest_goes_on(tmp_path, store):
    spool = Spool(tmp_path, "refused", "id")
    spool.append(study_record(spool))
    spool.append(trial(0, metrics={"bad name \u0000!": 1.0}))
    spool.append(trial(1))
    assert Sender(spool, store).finish(60) == 0
    rejected = (tmp_path / "spool" / "refused-id.rejected.jsonl").read_text()
    assert json.loads(rejected)["record"]["number"] == 0
    assert any(run.info.run_name == "trial-0001" for run in runs(store, "refused")[1])


def test_registry_alias_moves_and_rolls_back(tmp_path, store):
    spool = Spool(tmp_path, "registry", "id")
    spool.append(study_record(spool))
    folder = tmp_path / "result"
    (folder / "deploy").mkdir(parents=True)
    (folder / "deploy" / "deploy.yaml").write_text("generation: 1\n")
    for generation in (1, 2):
        key = f"promoted-{generation}"
        spool.append(trial(0) | {"kind": "result", "name": "promoted", "key": key, "folder": str(folder), "tags": {}})
        spool.append({"kind": "model", "name": "chamtune-test", "key": key, "generation": generation})
    assert Sender(spool, store).finish(90) == 0
    client = MlflowClient(tracking_uri=store, registry_uri=store)
    assert client.get_model_version_by_alias("chamtune-test", "champion").tags["generation"] == "2"
    spool.append({"kind": "rollback", "name": "chamtune-test", "generation": 1})
    assert Sender(spool, store).finish(60) == 0
    assert client.get_model_version_by_alias("chamtune-test", "champion").tags["generation"] == "1"


@pytest.mark.timeout(180)
def test_an_outage_of_the_server_loses_nothing_and_sends_nothing_twice(tmp_path, store, free_port):
    spool = Spool(tmp_path, "outage", "id")
    spool.append(study_record(spool))
    uri = f"http://127.0.0.1:{free_port}"
    sender = Sender(spool, uri)
    for number in range(4):
        spool.append(trial(number))
    time.sleep(1.5)
    assert spool.waiting() == 5
    server = start_server(store, tmp_path, free_port)
    try:
        deadline = time.monotonic() + 60
        while spool.waiting() and time.monotonic() < deadline:
            time.sleep(0.1)
        assert spool.waiting() == 0
        kill(server)
        spool.append(trial(4))
        time.sleep(1)
        assert spool.waiting() == 1
        server = start_server(store, tmp_path, free_port)
        assert sender.finish(60) == 0
        names = sorted(run.info.run_name for run in runs(store, "outage")[1])
        assert names == ["outage", *(f"trial-{n:04d}" for n in range(5))]
    finally:
        kill(server)


def kill(server: subprocess.Popen[bytes]) -> None:
    """The launcher and the server that it started."""
    os.killpg(server.pid, signal.SIGKILL)
    server.wait()


def start_server(store: str, home: Path, port: int) -> subprocess.Popen[bytes]:
    environment = os.environ | {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with (home / "server.log").open("ab") as log:
        server = subprocess.Popen(
            [
                *(sys.executable, "-m", "mlflow", "server", "--backend-store-uri", store, "--workers", "1"),
                *("--host", "127.0.0.1", "--port", str(port), "--artifacts-destination", str(home / "artifacts")),
            ],
            stdout=log,
            stderr=log,
            env=environment,
            start_new_session=True,
        )
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1):
                return server
        except OSError:
            time.sleep(0.2)
    raise AssertionError((home / "server.log").read_text()[-2000:])


def test_default_uri_is_a_file_of_its_own(tmp_path):
    assert tracking_uri(tmp_path, None).endswith("/mlflow.db")
    assert tracking_uri(tmp_path, "http://x") == "http://x"


def test_torn_line_waits_for_its_end_and_is_passed_over(tmp_path):
    spool = Spool(tmp_path, "torn", "id")
    spool.append({"kind": "trial", "number": 0})
    with spool.path.open("ab") as file:
        file.write(b'{"kind": "tri')
    assert spool.trials() == {0}
    spool.append({"kind": "trial", "number": 2})
    assert spool.trials() == {0, 2}
    assert spool.records()[-1][1] == spool.path.stat().st_size


def test_a_record_whose_folder_is_gone_does_not_stop_the_rest(tmp_path, store):
    spool = Spool(tmp_path, "gone", "id")
    spool.append(study_record(spool))
    spool.append(
        trial(0) | {"kind": "result", "name": "best", "key": "best", "folder": str(tmp_path / "no"), "tags": {}}
    )
    spool.append(trial(1))
    assert Sender(spool, store).finish(60) == 0
    assert any(run.info.run_name == "trial-0001" for run in runs(store, "gone")[1])


def test_artifacts_of_a_local_store_lie_in_the_home_folder(tmp_path, store):
    spool = Spool(tmp_path, "artifacts", "id")
    (tmp_path / "result").mkdir()
    (tmp_path / "result" / "summary.md").write_text("x")
    spool.append(study_record(spool))
    spool.append(
        trial(0) | {"kind": "result", "name": "best", "key": "b", "folder": str(tmp_path / "result"), "tags": {}}
    )
    assert Sender(spool, store).finish(60) == 0
    assert [p.name for p in (tmp_path / "mlartifacts" / "artifacts").rglob("*.md")] == ["summary.md"]
