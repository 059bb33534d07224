"""A deployment is tuned again on what was logged, and begins with what stands."""

import json
from dataclasses import asdict
from pathlib import Path

import optuna
import pytest

from personalization.data.lamp import check_dataset
from personalization.deployment import read_config
from personalization.errors import DataError, UsageError
from serving.log import Log, records
from serving.retune import AGAIN, by_user, fixed_below, labelled, spec_of_retune
from studies.runner import run_study
from studies.storage import open_storage, storage_url
from studies.study import open_study
from tests.serving.conftest import feed, items, predict
from tests.studies.test_chain_study import HEAD, made_with

SPEC = {
    "name": "tiny",
    "data": {"split": "users", "shares": {"tune": 0.4, "select": 0.2, "confirm": 0.4}},
    "model": {"dtype": "float32", "device": "auto"},
    "objective": "calibration",
    "tracking": "none",
    "optimize": {"accuracy": "maximize"},
    "constraints": {},
}
PROVENANCE = {"study": "tiny", "study_id": "x", "state": "s", "spec": SPEC}


@pytest.fixture
def logged(deploy, write_deployment, asking, tmp_path):
    """(deployment, log): 60 users who like what they liked before, which the deployment does not know to use."""
    write_deployment(deploy, gamma=0.5, provenance=PROVENANCE)
    tastes = [str(1 + number % 5) for number in range(60)]
    asks = [
        {"text": f"a lamp {number} {question}", "user": f"u{number}", "history": items(*taste * 4)}
        for number, taste in enumerate(tastes)
        for question in range(2)
    ]
    with asking(texts=True) as client:
        for number, answer in enumerate(predict(client, asks)):
            feed(client, answer, tastes[number // 2])
        client.post("/predict", json={"text": "a lamp without a label"})
    return deploy, tmp_path / "log"


def test_a_log_becomes_questions_with_gold_and_dates(logged):
    deploy, log = logged
    dataset = labelled(log, read_config(deploy))
    assert len(dataset) == 120
    assert {q.gold for q in dataset.questions} == set("12345")
    assert all(q.date is not None and len(q.history) == 4 for q in dataset.questions)
    asked_at = dataset.questions[0].date
    assert len(labelled(log, read_config(deploy), asked_at.isoformat())) == 120
    with pytest.raises(DataError, match="no answer has got a label since 2200"):
        labelled(log, read_config(deploy), "2200-01-01")
    with pytest.raises(DataError, match="not a date"):
        labelled(log, read_config(deploy), "soon")


def test_what_a_killed_command_left_half_written_is_written_again(logged, tmp_path):
    deploy, log = logged
    folder = Path(spec_of_retune(deploy, log, tmp_path / "home").data.path)
    whole = {path.name: path.read_bytes() for path in folder.iterdir()}
    (folder / "log_outputs.json").unlink()
    spec_of_retune(deploy, log, tmp_path / "home")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == whole


def test_questions_and_items_that_no_file_may_hold_are_left_out_and_counted(logged, tmp_path, caplog):
    """A server of an earlier version took them, and any server takes items without a label."""
    deploy, log = logged
    good = next(record for record in records(log, "questions"))
    own = good["profile"][0]
    odd = [{"input": "  "}, {"input": "nul\0nul"}, {"user_id": " "}, {"user_id": "u\0"}]
    bare = {key: value for key, value in own.items() if key != "score"}
    odd += [{"profile": [own, {**own, "text": "\t"}, {**own, "score": " "}, bare]}]
    asked = Log(log, "questions")
    names = asked.append([{**{k: v for k, v in good.items() if k != "request"}, **more} for more in odd])
    given = Log(log, "feedback")
    given.append([{"of": name, "label": "2", "at": good["at"]} for name in names])
    asked.close()
    given.close()
    assert spec_of_retune(deploy, log, tmp_path / "home").name.startswith("tiny-again-")
    dataset = labelled(log, read_config(deploy))
    assert (len(dataset), len(dataset.questions[-1].history)) == (121, 1)
    assert "4 of 125 questions and 3 of 484 history items are left out: empty, unreadable, or without" in caplog.text
    (folder,) = (tmp_path / "home" / "serving" / "again").iterdir()
    assert check_dataset(folder).usable().questions == dataset.questions


def fallen(traffic):
    """The drift of an accuracy that fell with the first question."""
    at = {"seen_at": traffic.times[9], "since": traffic.times[0]}
    return [{"what": "accuracy where labels came", **at, "before": 0.6, "after": 0.2}]


def study_of(home, name):
    return optuna.load_study(study_name=name, storage=open_storage(storage_url(home, None)))


@pytest.mark.usefixtures("no_results")
@pytest.mark.parametrize("more", [(), ("--every", "1")])
def test_a_signal_stops_it_with_its_number(logged, tmp_path, command, monkeypatch, more):
    deploy, log = logged
    monkeypatch.setattr("serving.retune.run_study", lambda *given: run_study(*given)._replace(stopped_by=15))
    words = ("retune", deploy, "--data", log, "--trials", 1, "--home", tmp_path / "home", *more)
    code, out, err = command(*words)
    assert (code, "stopped: signal 15 stopped the study" in out) == (143, True), err


@pytest.mark.usefixtures("no_results")
def test_a_signal_stops_monitoring_that_tunes_again(logged, tmp_path, command, monkeypatch):
    _, log = logged
    monkeypatch.setattr("serving.monitor.drifts", fallen)
    monkeypatch.setattr("serving.retune.run_study", lambda *given: run_study(*given)._replace(stopped_by=2))
    code, out, err = command("monitor", log, "--retune", "--trials", 1, "--home", tmp_path / "home")
    assert (code, "0.6 -> 0.2: stopped: signal 2 stopped the study" in out) == (130, True), err


def test_a_split_that_there_is_not_is_refused(deploy, tmp_path, command):
    code, _, err = command("retune", deploy, "--data", tmp_path, "--split", "tiem")
    assert (code, "--split tiem: there are users, time" in err) == (64, True)


def test_since_is_of_a_log_alone(deploy, write_deployment, tmp_path):
    write_deployment(deploy, provenance=PROVENANCE)
    with pytest.raises(UsageError, match="--since is of a log, and .* is none"):
        spec_of_retune(deploy, tmp_path, tmp_path / "home", since="2026-01-01")


def test_other_data_than_a_log_or_files_are_refused(deploy, write_deployment, tmp_path):
    write_deployment(deploy, provenance=PROVENANCE)
    with pytest.raises(DataError, match="no log of a server, and no LaMP files"):
        spec_of_retune(deploy, tmp_path / "nowhere", tmp_path / "home")


@pytest.mark.usefixtures("no_results")
def test_the_study_begins_with_what_stands_and_its_verdict_is_a_promotions(logged, tmp_path, command):
    deploy, log = logged
    home = tmp_path / "home"
    code, out, err = command("retune", deploy, "--data", log, "--trials", 4, "--home", home, "--json")
    found = json.loads(out.splitlines()[-1])
    assert (code, found["promoted"]) in ((0, True), (3, False)), err
    assert found["study"].startswith("tiny-again-")
    assert found["trials"] == 4
    study = study_of(home, found["study"])
    first = study.get_trials()[0]
    assert first.user_attrs["deployed"] is True
    assert (first.params["gamma"], first.params["prior_mode"]) == (0.5, "user")
    assert read_config(deploy)["generation"] == (2 if found["promoted"] else 1)
    assert "better" in found["reason"] or not found["promoted"]
    assert study.user_attrs[AGAIN]["why"] == found["why"] == ["asked for"]
    assert (study.user_attrs[AGAIN]["generation"], found["questions"]) == (1, 120)


@pytest.mark.usefixtures("no_results")
def test_strengths_of_each_user_are_tried_when_asked_for(logged, tmp_path, command):
    deploy, log = logged
    home = tmp_path / "home"
    words = ("retune", deploy, "--data", log, "--trials", 3, "--home", home, "--json")
    _, out, err = command(*words, "--by-user")
    assert out, err
    found = json.loads(out.splitlines()[-1])
    assert found["study"].endswith("-by-user")
    study = study_of(home, found["study"])
    first, second, _ = study.get_trials()
    assert (first.params["per_user"], second.params["per_user"]) == ("none", "all")
    assert first.params == {**second.params, "per_user": "none"}
    spec = spec_of_retune(deploy, log, home)
    assert spec.name == found["study"].removesuffix("-by-user")
    with pytest.raises(UsageError, match=r"the deployed chain is head, calibration"):
        by_user(spec.model_copy(update={"objective": None, "chain": ["head", "calibration"]}))


@pytest.mark.slow
@pytest.mark.usefixtures("no_results")
def test_monitoring_begins_it_where_something_drifted_with_what_came_since(logged, tmp_path, command, monkeypatch):
    _, log = logged
    words = ("monitor", log, "--retune", "--trials", 2, "--home", tmp_path / "home", "--json")
    found = json.loads(command(*words)[1].splitlines()[-1])
    assert (found["faults"], found["drift"], found["retuned"]) == ([], [], None)
    monkeypatch.setattr("serving.monitor.drifts", fallen)
    _, out, err = command(*words)
    found = json.loads(out.splitlines()[-1])["retuned"]
    assert found["why"] == ["drift of accuracy where labels came: 0.6 -> 0.2"], err
    assert (found["trials"], found["questions"]) == (2, 120)
    study = study_of(tmp_path / "home", found["study"])
    assert study.user_attrs[AGAIN]["why"] == found["why"]


@pytest.mark.slow
@pytest.mark.usefixtures("no_results")
def test_what_a_staged_study_started_from_stays_as_it_is_deployed(spec_of, tmp_path, caplog):
    below = made_with(spec_of, name="below", chain=["head", "calibration"], space=HEAD, trials=2)
    run_study(below, tmp_path)
    above = made_with(spec_of, name="above", chain=["head", "calibration"], start_from="below", trials=1)
    opened = open_study(above, tmp_path)
    chain = [{"stage": name, "params": asdict(own)} for name, own in opened.rooms.decode({}).stages]
    config = {"chain": chain, "provenance": {"study": "above", "spec": {}}}
    fixed = fixed_below(config, tmp_path)
    assert set(fixed) == {f"head.{name}" for name in chain[0]["params"]}
    again = open_study(made_with(spec_of, name="again", chain=["head", "calibration"]), tmp_path, started=fixed)
    assert "c" not in again.space
    assert "gamma" in again.space
    assert asdict(again.rooms.decode({})["head"]) == chain[0]["params"]
    assert fixed_below({**config, "provenance": {"study": "elsewhere", "spec": {}}}, tmp_path) == {}
    assert "no stage stays fixed" in caplog.text
