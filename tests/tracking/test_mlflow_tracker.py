"""What is sent arrives, once, whatever is lost meanwhile."""

import fcntl
import math
import shutil
import sqlite3

import pytest

from tests.sent import Ended, begun, file_of, names, result, run_of, runs, trial
from tracking.spool import Sender, Spool

mlflow = pytest.importorskip("mlflow")

from tracking.mlflow_tracker import send  # noqa: E402


@pytest.mark.slow
def test_study_and_trials_arrive_once_each(tmp_path, store):
    spool = begun(tmp_path, "once", trials=3)
    spool.append(trial(5, curves={"training/loss": [2.0, 1.5, 1.25]}))
    spool.append(trial(3, state="FAIL", metrics={}, failure="Traceback: boom", feasible=False))
    assert send(spool, store, Ended())
    spool.append(trial(4))
    spool.sent_path.write_text("{ torn")
    sender = Sender(spool, store)
    assert sender.finish(60) == 0
    assert sender.succeeded
    client, found = runs(store, "once")
    assert names(store, "once") == [
        "once",
        "trial-0000",
        "trial-0001",
        "trial-0002",
        "trial-0003",
        "trial-0004",
        "trial-0005",
    ]
    parent = run_of(found, "once")
    second = run_of(found, "trial-0002")
    failed = run_of(found, "trial-0003")
    assert second.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert second.data.metrics == {"accuracy": 0.2, "entropy": 1.0, "constraint/entropy": -0.4}
    assert (second.data.params, second.data.tags["feasible"]) == ({"beta": "2.5"}, "true")
    assert (failed.info.status, failed.data.tags["failure"]) == ("FAILED", "Traceback: boom")
    history = client.get_metric_history(second.info.run_id, "accuracy")
    assert len(history) == 1
    trained = run_of(found, "trial-0005")
    curve = client.get_metric_history(trained.info.run_id, "training/loss")
    assert [(point.step, point.value) for point in curve] == [(1, 2.0), (2, 1.5), (3, 1.25)]


@pytest.mark.slow
def test_what_is_refused_is_not_sent_and_the_rest_goes_on(tmp_path, store, caplog):
    spool = begun(tmp_path, "refused")
    spool.append(trial(0, metrics={"bad name \u0000!": 1.0}))
    spool.append(trial(1))
    sender = Sender(spool, store)
    assert sender.finish(60) == spool.waiting() == 1
    assert not sender.succeeded
    assert "did not take 1 records of refused: Invalid value" in caplog.text
    assert "trial-0001" in names(store, "refused")


@pytest.mark.slow
def test_a_record_whose_files_are_gone_is_tried_again_by_the_next_sender(tmp_path, store):
    spool, folder = begun(tmp_path, "gone"), tmp_path / "result"
    spool.append(result("best", "best", folder))
    spool.append(trial(1))
    assert not send(spool, store, Ended())
    assert spool.waiting() == 1
    assert "result" in spool.refused()[0]
    assert "trial-0001" in names(store, "gone")
    folder.mkdir()
    (folder / "summary.md").write_text("x")
    assert send(spool, store, Ended())
    assert spool.waiting() == 0
    client, found = runs(store, "gone")
    best = run_of(found, "best")
    assert [file.path for file in client.list_artifacts(best.info.run_id)] == ["summary.md"]


def delete_database(uri, client, found, spool):
    shutil.copy(file_of(uri).with_suffix(".empty"), file_of(uri))


def delete_experiment(uri, client, found, spool):
    client.delete_experiment(found[0].info.experiment_id)


def delete_runs_and_experiment(uri, client, found, spool):
    client.delete_run(found[0].info.run_id)
    client.delete_experiment(found[0].info.experiment_id)


def rename_experiment(uri, client, found, spool):
    client.rename_experiment(found[0].info.experiment_id, "other")


def delete_parent(uri, client, found, spool):
    client.delete_run(run_of(found, spool.study).info.run_id)


def delete_a_trial(uri, client, found, spool):
    client.delete_run(run_of(found, "trial-0001").info.run_id)


def delete_a_trial_for_good(uri, client, found, spool):
    chosen = run_of(found, "trial-0001").info.run_id
    with sqlite3.connect(file_of(uri)) as database:
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
    shutil.copy(file_of(own_store), file_of(own_store).with_suffix(".empty"))
    spool = begun(tmp_path, "study", trials=3)
    assert send(spool, own_store, Ended())
    before = names(own_store, "study")
    loss(own_store, *runs(own_store, "study"), spool)
    assert send(spool, own_store, Ended())
    assert names(own_store, "study") == before == ["study", "trial-0000", "trial-0001", "trial-0002"]
    spool.append(trial(3))
    assert send(spool, own_store, Ended())
    client, found = runs(own_store, "study")
    parent = run_of(found, "study")
    for run in found:
        if run is not parent:
            assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
            assert len(client.get_metric_history(run.info.run_id, "accuracy")) == 1
    assert len(found) == 5


@pytest.mark.slow
def test_what_is_deleted_while_the_sender_runs_is_mended_at_the_next_record(tmp_path, own_store):
    spool = begun(tmp_path, "meanwhile", trials=1)

    def meanwhile():
        client, found = runs(own_store, "meanwhile")
        client.delete_experiment(found[0].info.experiment_id)
        spool.append(trial(1))

    assert send(spool, own_store, Ended(meanwhile))
    assert names(own_store, "meanwhile") == ["meanwhile", "trial-0000", "trial-0001"]


@pytest.mark.slow
def test_a_shortened_spool_is_sent_from_its_beginning_under_a_parent_made_for_it(tmp_path, own_store):
    shutil.copy(file_of(own_store), file_of(own_store).with_suffix(".empty"))
    spool = begun(tmp_path, "short", trials=1)
    assert send(spool, own_store, Ended())
    spool.path.unlink()
    spool.append(trial(7))
    assert spool.waiting() == 1
    shutil.copy(file_of(own_store).with_suffix(".empty"), file_of(own_store))
    assert send(spool, own_store, Ended())
    assert names(own_store, "short") == ["short", "trial-0007"]
    found = runs(own_store, "short")[1]
    assert {run.data.tags.get("mlflow.parentRunId") for run in found} == {
        None,
        next(run.info.run_id for run in found if run.info.run_name == "short"),
    }


@pytest.mark.slow
def test_figures_that_are_not_finite_harm_nothing_and_are_named(tmp_path, store):
    spool = begun(tmp_path, "odd")
    spool.append(trial(0, metrics={"accuracy": 0.5, "nll": math.inf, "mae": math.nan}, params={"tau": math.inf}))
    assert send(spool, store, Ended())
    run = run_of(runs(store, "odd")[1], "trial-0000")
    assert run.data.metrics["accuracy"] == 0.5
    assert math.isnan(run.data.metrics["mae"])
    assert run.data.tags["not_finite"] == "nll is inf, mae is nan"
    assert run.data.params == {"tau": "inf"}


def test_a_second_sender_leaves_when_the_first_has_sent_everything(tmp_path):
    spool = Spool(tmp_path, "second", "id")
    spool.path.parent.mkdir()
    with spool.path.with_suffix(".lock").open("ab") as first:
        fcntl.flock(first, fcntl.LOCK_EX)
        assert send(spool, f"sqlite:///{tmp_path / 'never-made.db'}", Ended())
        assert not (tmp_path / "never-made.db").exists()


def test_a_second_sender_says_that_nothing_is_there_where_the_first_sends_elsewhere(tmp_path):
    spool = begun(tmp_path, "elsewhere")
    spool.note_sent({"head": spool.head(), "offset": spool.records()[-1][1], "refused": {}, "place": "http://a"})
    with spool.path.with_suffix(".lock").open("ab") as first:
        fcntl.flock(first, fcntl.LOCK_EX)
        assert send(spool, "http://user:s3cret@a", Ended())
        assert not send(spool, "http://b", Ended())


@pytest.mark.slow
def test_artifacts_of_a_local_store_lie_in_the_home_folder(tmp_path, store):
    spool = begun(tmp_path, "artifacts")
    (tmp_path / "result").mkdir()
    (tmp_path / "result" / "summary.md").write_text("x")
    spool.append(result("best", "b", tmp_path / "result"))
    assert send(spool, store, Ended())
    assert [p.name for p in (tmp_path / "mlartifacts" / "artifacts").rglob("*.md")] == ["summary.md"]
