import fcntl
import math
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
import yaml

from tracking.deployed import config_digest
from tracking.spool import Sender, Spool, tracking_uri

mlflow = pytest.importorskip("mlflow")
from mlflow import MlflowClient  # noqa: E402

from tracking.mlflow_tracker import Patience, send  # noqa: E402


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


@pytest.fixture
def own_store(store, tmp_path) -> str:
    """A database that a test may spoil: a copy of the one that has only its schema and other tests' studies."""
    shutil.copy(_file(store), tmp_path / "mlflow.db")
    return f"sqlite:///{tmp_path / 'mlflow.db'}"


def _file(uri: str) -> Path:
    from personalization.databases import sqlite_file

    return sqlite_file(uri)


def runs(uri: str, study: str):
    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name(study)
    return client, client.search_runs([experiment.experiment_id], max_results=1000)


@pytest.mark.slow
def test_study_and_trials_arrive_once_each(tmp_path, store):
    spool = Spool(tmp_path, "once", "id")
    spool.append(study_record(spool))
    for number in range(3):
        spool.append(trial(number))
    spool.append(trial(5, curves={"training/loss": [2.0, 1.5, 1.25]}))
    spool.append(trial(3, state="FAIL", metrics={}, failure="Traceback: boom", feasible=False))
    assert send(spool, store, Ended())
    spool.append(trial(4))
    spool.sent_path.write_text("{ torn")
    sender = Sender(spool, store)
    assert sender.finish(60) == 0
    assert sender.succeeded
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


@pytest.mark.slow
def test_what_is_refused_is_not_sent_and_the_rest_goes_on(tmp_path, store, caplog):
    spool = Spool(tmp_path, "refused", "id")
    spool.append(study_record(spool))
    spool.append(trial(0, metrics={"bad name \u0000!": 1.0}))
    spool.append(trial(1))
    sender = Sender(spool, store)
    assert sender.finish(60) == spool.waiting() == 1
    assert not sender.succeeded
    assert "did not take 1 records of refused: Invalid value" in caplog.text
    assert any(run.info.run_name == "trial-0001" for run in runs(store, "refused")[1])


@pytest.mark.slow
def test_a_record_whose_files_are_gone_is_tried_again_by_the_next_sender(tmp_path, store):
    spool, folder = Spool(tmp_path, "gone", "id"), tmp_path / "result"
    spool.append(study_record(spool))
    spool.append(trial(0) | {"kind": "result", "name": "best", "key": "best", "folder": str(folder), "tags": {}})
    spool.append(trial(1))
    assert not send(spool, store, Ended())
    assert spool.waiting() == 1
    assert "result" in spool.refused()[0]
    assert any(run.info.run_name == "trial-0001" for run in runs(store, "gone")[1])
    folder.mkdir()
    (folder / "summary.md").write_text("x")
    assert send(spool, store, Ended())
    assert spool.waiting() == 0
    client, found = runs(store, "gone")
    best = next(run for run in found if run.info.run_name == "best")
    assert [file.path for file in client.list_artifacts(best.info.run_id)] == ["summary.md"]


def names(uri: str, study: str) -> list[str]:
    return sorted(run.info.run_name for run in runs(uri, study)[1])


def delete_database(uri, client, found, spool):
    shutil.copy(_file(uri).with_suffix(".empty"), _file(uri))


def delete_experiment(uri, client, found, spool):
    client.delete_experiment(found[0].info.experiment_id)


def delete_runs_and_experiment(uri, client, found, spool):
    client.delete_run(found[0].info.run_id)
    client.delete_experiment(found[0].info.experiment_id)


def rename_experiment(uri, client, found, spool):
    client.rename_experiment(found[0].info.experiment_id, "other")


def delete_parent(uri, client, found, spool):
    client.delete_run(next(run for run in found if run.info.run_name == spool.study).info.run_id)


def delete_a_trial(uri, client, found, spool):
    client.delete_run(next(run for run in found if run.info.run_name == "trial-0001").info.run_id)


def delete_a_trial_for_good(uri, client, found, spool):
    chosen = next(run for run in found if run.info.run_name == "trial-0001").info.run_id
    with sqlite3.connect(_file(uri)) as database:
        for table in ("metrics", "latest_metrics", "params", "tags", "runs"):
            database.execute(f"DELETE FROM {table} WHERE run_uuid = ?", (chosen,))
    database.close()


def delete_notes(uri, client, found, spool):
    spool.sent_path.unlink()


def write_spool_anew(uri, client, found, spool):
    records = [record for record, _ in spool.records()]
    spool.path.unlink()
    for record in [records[0] | {"started_ms": 77}, *records[1:]]:
        spool.append(record)


@pytest.mark.slow
@pytest.mark.parametrize(
    "loss",
    [
        *(delete_database, delete_experiment, delete_runs_and_experiment, rename_experiment, delete_parent),
        *(delete_a_trial, delete_a_trial_for_good, delete_notes, write_spool_anew),
    ],
)
def test_whatever_is_deleted_is_there_again_after_the_next_sender_and_nothing_twice(tmp_path, own_store, loss):
    shutil.copy(_file(own_store), _file(own_store).with_suffix(".empty"))
    spool = Spool(tmp_path, "study", "id")
    spool.append(study_record(spool))
    for number in range(3):
        spool.append(trial(number))
    assert send(spool, own_store, Ended())
    before = names(own_store, "study")
    loss(own_store, *runs(own_store, "study"), spool)
    assert send(spool, own_store, Ended())
    assert names(own_store, "study") == before == ["study", "trial-0000", "trial-0001", "trial-0002"]
    spool.append(trial(3))
    assert send(spool, own_store, Ended())
    client, found = runs(own_store, "study")
    parent = next(run for run in found if run.info.run_name == "study")
    for run in found:
        if run is not parent:
            assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
            assert len(client.get_metric_history(run.info.run_id, "accuracy")) == 1
    assert len(found) == 5


@pytest.mark.slow
def test_what_is_deleted_while_the_sender_runs_is_mended_at_the_next_record(tmp_path, own_store):
    spool = Spool(tmp_path, "meanwhile", "id")
    spool.append(study_record(spool))
    spool.append(trial(0))

    def meanwhile():
        client, found = runs(own_store, "meanwhile")
        client.delete_experiment(found[0].info.experiment_id)
        spool.append(trial(1))

    assert send(spool, own_store, Ended(meanwhile))
    assert names(own_store, "meanwhile") == ["meanwhile", "trial-0000", "trial-0001"]


@pytest.mark.slow
def test_a_shortened_spool_is_sent_from_its_beginning_under_a_parent_made_for_it(tmp_path, own_store):
    shutil.copy(_file(own_store), _file(own_store).with_suffix(".empty"))
    spool = Spool(tmp_path, "short", "id")
    spool.append(study_record(spool))
    spool.append(trial(0))
    assert send(spool, own_store, Ended())
    spool.path.unlink()
    spool.append(trial(7))
    assert spool.waiting() == 1
    shutil.copy(_file(own_store).with_suffix(".empty"), _file(own_store))
    assert send(spool, own_store, Ended())
    assert names(own_store, "short") == ["short", "trial-0007"]
    found = runs(own_store, "short")[1]
    assert {run.data.tags.get("mlflow.parentRunId") for run in found} == {
        None,
        next(run.info.run_id for run in found if run.info.run_name == "short"),
    }


@pytest.mark.slow
def test_figures_that_are_not_finite_harm_nothing_and_are_named(tmp_path, store):
    spool = Spool(tmp_path, "odd", "id")
    spool.append(study_record(spool))
    spool.append(trial(0, metrics={"accuracy": 0.5, "nll": math.inf, "mae": math.nan}, params={"tau": math.inf}))
    assert send(spool, store, Ended())
    run = next(run for run in runs(store, "odd")[1] if run.info.run_name == "trial-0000")
    assert run.data.metrics["accuracy"] == 0.5
    assert math.isnan(run.data.metrics["mae"])
    assert run.data.tags["not_finite"] == "nll is inf, mae is nan"
    assert run.data.params == {"tau": "inf"}


def test_a_write_that_takes_only_a_part_is_continued(tmp_path, monkeypatch):
    write = os.write
    monkeypatch.setattr("os.write", lambda handle, data: write(handle, bytes(data)[:5]))
    spool = Spool(tmp_path, "parts", "id")
    spool.append(trial(0))
    spool.append(trial(1))
    monkeypatch.undo()
    assert spool.trials() == {0, 1}


def test_a_second_sender_leaves_when_the_first_has_sent_everything(tmp_path):
    spool = Spool(tmp_path, "second", "id")
    spool.path.parent.mkdir()
    with spool.path.with_suffix(".lock").open("ab") as first:
        fcntl.flock(first, fcntl.LOCK_EX)
        sender = Sender(spool, f"sqlite:///{tmp_path / 'never-made.db'}")
        assert sender.finish(60) == 0
        assert sender.succeeded


@pytest.mark.slow
def test_the_sender_runs_nothing_of_the_working_directory(tmp_path, store, monkeypatch):
    here = tmp_path / "here"
    (here / "tracking").mkdir(parents=True)
    for module in (here / "mlflow.py", here / "tenacity.py", here / "tracking" / "__init__.py"):
        module.write_text("import pathlib\npathlib.Path(__file__).with_suffix('.ran').touch()\n")
    monkeypatch.chdir(here)
    spool = Spool(tmp_path / "home", "elsewhere", "id")
    spool.append(study_record(spool))
    assert Sender(spool, store).finish(60) == 0
    assert list(here.rglob("*.ran")) == []
    assert names(store, "elsewhere") == ["elsewhere"]


def deploy(out: Path, generation: int, **content) -> str:
    """Put a config to a place; its digest."""
    config = {"generation": generation, **content}
    out.write_text(yaml.safe_dump(config))
    return config_digest(config)


def promoted(spool: Spool, folder: Path, out: Path, generation: int, digest: str) -> None:
    (folder / "deploy").mkdir(parents=True, exist_ok=True)
    key = f"promoted-{spool.study_id}-{generation}"
    spool.append(trial(0) | {"kind": "result", "name": "promoted", "key": key, "folder": str(folder), "tags": {}})
    place = {"name": "chamtune-test", "out": str(out), "digest": digest}
    spool.append({"kind": "model", **place, "key": key, "generation": generation})


def champion(uri: str) -> str:
    client = MlflowClient(tracking_uri=uri, registry_uri=uri)
    return client.get_model_version_by_alias("chamtune-test", "champion").tags["config"]


@pytest.mark.slow
def test_the_champion_is_what_stands_after_promotions_and_rollbacks(tmp_path, own_store):
    spool, out = Spool(tmp_path, "registry", "id"), tmp_path / "deploy.yaml"
    spool.append(study_record(spool))
    first = deploy(out, 1, beta=1)
    promoted(spool, tmp_path / "result", out, 1, first)
    second = deploy(out, 2, beta=2)
    promoted(spool, tmp_path / "result", out, 2, second)
    assert send(spool, own_store, Ended())
    assert champion(own_store) == second != first
    assert deploy(out, 3, beta=1, restored_from=1) == first
    spool.append({"kind": "rollback", "name": "chamtune-test", "out": str(out), "digest": first})
    assert send(spool, own_store, Ended())
    assert champion(own_store) == first


@pytest.mark.slow
def test_two_homes_that_deploy_to_one_place_agree_on_the_champion(tmp_path, own_store):
    one, two = Spool(tmp_path / "one", "study", "a"), Spool(tmp_path / "two", "study", "b")
    out = tmp_path / "deploy.yaml"
    one.append(study_record(one))
    two.append(study_record(two))
    first = deploy(out, 1, study="a")
    promoted(one, tmp_path / "result", out, 1, first)
    second = deploy(out, 1, study="b")
    promoted(two, tmp_path / "result", out, 1, second)
    assert send(two, own_store, Ended())
    assert send(one, own_store, Ended())
    assert champion(own_store) == second != first
    versions = MlflowClient(own_store, own_store).search_model_versions("name = 'chamtune-test'")
    assert sorted(version.tags["config"] for version in versions) == sorted([first, second])


@pytest.mark.slow
def test_a_place_where_something_unknown_stands_has_no_champion(tmp_path, own_store):
    spool, out = Spool(tmp_path, "registry", "id"), tmp_path / "deploy.yaml"
    spool.append(study_record(spool))
    promoted(spool, tmp_path / "result", out, 1, deploy(out, 1, beta=1))
    assert send(spool, own_store, Ended())
    digest = deploy(out, 2, beta="of a home that tells another MLflow")
    spool.append({"kind": "rollback", "name": "chamtune-test", "out": str(out), "digest": digest})
    assert send(spool, own_store, Ended())
    with pytest.raises(mlflow.MlflowException, match="champion"):
        champion(own_store)


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_an_outage_of_the_server_loses_nothing_and_sends_nothing_twice(tmp_path, store, free_port):
    spool = Spool(tmp_path, "outage", "id")
    spool.append(study_record(spool))
    sender = Sender(spool, f"http://user:s3cret@127.0.0.1:{free_port}")
    assert b"s3cret" not in Path(f"/proc/{sender._process.pid}/cmdline").read_bytes()
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
        for file in filter(Path.is_file, tmp_path.rglob("*")):
            assert b"s3cret" not in file.read_bytes(), file
        assert spool.sent_path.stat().st_mode & 0o777 == spool.path.stat().st_mode & 0o777 == 0o600
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


@pytest.mark.slow
def test_artifacts_of_a_local_store_lie_in_the_home_folder(tmp_path, store):
    spool = Spool(tmp_path, "artifacts", "id")
    (tmp_path / "result").mkdir()
    (tmp_path / "result" / "summary.md").write_text("x")
    spool.append(study_record(spool))
    spool.append(
        trial(0) | {"kind": "result", "name": "best", "key": "b", "folder": str(tmp_path / "result"), "tags": {}}
    )
    assert send(spool, store, Ended())
    assert [p.name for p in (tmp_path / "mlartifacts" / "artifacts").rglob("*.md")] == ["summary.md"]
