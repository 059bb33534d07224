"""A log as it was written: what of it belongs together, what is given again, and what a fault in it leads to."""

import json
import shutil
import tracemalloc
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from personalization.deployment import Deployment, read_config
from personalization.errors import DataError, UsageError
from serving.log import Log
from serving.monitor import report, watched
from serving.place import Place
from serving.replay import replay, shadowed
from serving.report_text import lines
from serving.retune import labelled
from serving.service import Service, Terms
from serving.traffic import read_traffic
from studies.verdict.deployments import publish
from tests.serving.conftest import ask, feed, items, predict, until
from tracking.deployed import config_digest


def answered(asking, users=30, label="2", **how):
    """Let users ask a server that is begun so, each once, and give all answers this label."""
    asks = [ask(f"a lamp {number}", user=f"u{number}", history=[]) for number in range(users)]
    with asking(texts=True, **how) as client:
        answers = predict(client, asks)
        for answer in answers:
            feed(client, answer, label)
    return answers


def test_only_the_latest_other_config_is_compared_with(asking, write_deployment, deploy, tmp_path):
    """The first shadow answers 2, which is right; the second one 3."""
    log, first = tmp_path / "log", write_deployment(tmp_path / "first", favourite=2)
    second = write_deployment(tmp_path / "second", favourite=3)
    answered(asking, other=first)
    assert report(watched(log, deploy))["comparison"]["mean"] == -1
    answered(asking, other=second)
    found = report(watched(log, deploy))
    assert (found["comparison"]["mean"], found["other"], found["left_out"]) == (0, str(second), 30)
    told = lines({**found, "faults": [], "rolled_back": None, "retuned": None})
    assert "  30 answers of other configs, or of a split before this one, are left out" in told
    anew = report(watched(log, deploy, baseline=first))
    assert (anew["comparison"]["mean"], anew["left_out"]) == (-1, 0)
    with asking(other=first):
        pass
    found = report(watched(log, deploy))
    assert (found["comparison"]["mean"], found["left_out"]) == (-1, 30)
    (log / "about.json").write_text(json.dumps({"deploy": str(deploy), "other": str(first), "split": 0.0}))
    assert report(watched(log, deploy))["left_out"] == 30


def test_a_split_is_judged_since_it_is_as_it_is(asking, write_deployment, deploy, tmp_path):
    """Begun in a log of a shadow's, then changed, then with another config."""
    log, first = tmp_path / "log", write_deployment(tmp_path / "first", favourite=2)
    answered(asking, users=200, other=first)
    answers = answered(asking, users=40, other=first, split=0.5)
    found = report(watched(log, deploy))
    b = sum(answer["arm"] == "b" for answer in answers)
    assert (found["ratio"]["a"], found["ratio"]["b"], found["ratio"]["fault"]) == (40 - b, b, False)
    assert (found["comparison"]["kind"], found["comparison"]["mean"], found["left_out"]) == ("split", -1, 200)
    answers = answered(asking, users=40, other=first, split=0.2)
    found, fewer = report(watched(log, deploy)), sum(answer["arm"] == "b" for answer in answers)
    assert (found["ratio"]["b"], found["ratio"]["fault"], found["left_out"]) == (fewer, False, 200 + b)
    second = write_deployment(tmp_path / "second", favourite=3)
    answered(asking, users=40, other=second, split=0.2)
    found = report(watched(log, deploy))
    assert (found["ratio"]["b"], found["comparison"]["mean"], found["left_out"]) == (fewer, 0, 200 + b + fewer)


def test_in_a_log_of_an_earlier_version_a_split_begins_after_its_shadow(asking, other, deploy, tmp_path):
    log = tmp_path / "log"
    answered(asking, users=200, other=other)
    answered(asking, users=40, other=other, split=0.5)
    (path,) = log.glob("questions-*")
    whole = report(watched(log, deploy))
    old = [{k: v for k, v in json.loads(line).items() if k != "split"} for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(line) + "\n" for line in old))
    told = json.loads((log / "about.json").read_text())
    (log / "about.json").write_text(json.dumps({k: v for k, v in told.items() if k != "other_config"}))
    found = report(watched(log, deploy))
    first = next(row for row, line in enumerate(old) if line["arm"] == "b") - 200
    assert found["ratio"]["b"] == whole["ratio"]["b"] > 10
    assert (found["ratio"]["a"], found["ratio"]["fault"]) == (whole["ratio"]["a"] - first, False)
    assert (found["comparison"]["kind"], found["left_out"]) == ("split", whole["left_out"])


def test_the_other_config_is_noted_anew_when_a_new_one_takes_its_place(
    asking, other, write_deployment, tmp_path, monkeypatch
):
    monkeypatch.setattr("serving.service.LOOK_S", 0.05)
    about = tmp_path / "log" / "about.json"
    with asking(other=other):
        before = json.loads(about.read_text())
        write_deployment(other, favourite=3, generation=2)
        until(lambda: json.loads(about.read_text()) != before)
    assert {**json.loads(about.read_text()), "other_config": before["other_config"]} == before
    assert json.loads(about.read_text())["other_config"] == config_digest(read_config(other))


def test_a_log_with_other_labels_is_refused_when_served_and_when_read(asking, write_deployment, deploy, tmp_path):
    with asking() as client:
        client.post("/predict", json=ask())
    write_deployment(deploy, generation=2, labels=["1", "2", "3", "4", "6"])
    with pytest.raises(UsageError, match=r"the labels 1, 2, 3, 4, 5, and this .* 1, 2, 3, 4, 6; give .* with --log"):
        Service(Place(deploy), Terms(tmp_path / "log"))
    log = tmp_path / "log"
    Log(log, "questions").append([{**given_line(log), "log_probs": dict.fromkeys("12346", -1.6)}])
    for read in (lambda: watched(log, deploy), lambda: labelled(log, read_config(deploy))):
        with pytest.raises(DataError, match=r"questions-000001\.jsonl: line 1 has the labels 1, 2, 3, 4, 5, where 1"):
            read()


def test_replay_gives_what_was_given_and_needs_texts(asking, deploy, other, tmp_path, command):
    with asking(texts=True) as client:
        for number in range(6):
            more = {"user": f"u{number}", "history": items(*"2" * (number % 3)), "date": "2026-01-02"}
            feed(client, client.post("/predict", json=ask(f"a lamp {number}", **more)).json(), "2")
    log = tmp_path / "log"
    given = read_traffic(log)
    same = replay(log, Deployment.load(deploy), tmp_path / "out.jsonl")
    assert same == {"answers": 6, "changed": 0.0, "labelled": 6, "accuracy_then": 0.6667, "accuracy_now": 0.6667}
    out = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [line["request"] for line in out] == given.requests.tolist()
    apart = np.array([[line["log_probs"][label] for label in given.labels] for line in out]) - given.log_probs
    assert np.abs(apart).max() < 1e-4
    code, out, _ = command("replay", log, "--config", other, "--home", tmp_path / "h", "--json")
    assert (code, json.loads(out)["changed"], json.loads(out)["accuracy_now"]) == (0, 0.3333, 1.0)
    Log(log, "questions").append([{**given_line(log), "input": "blake2b:00"}])
    with pytest.raises(DataError, match="has no text; `chamtune serve --texts` keeps them"):
        replay(log, Deployment.load(deploy))


def given_line(log):
    return json.loads(next(log.glob("questions-*")).read_text().splitlines()[0])


def test_monitor_says_what_is_broken_and_rolls_back(asking, deploy, write_deployment, tmp_path, command):
    """Everybody is answered alike: the entropy that the study asked for is gone."""
    spec = {"name": "tiny", "constraints": {"entropy": ">= 0.5"}}
    write_deployment(deploy, provenance={"study": "tiny", "spec": spec})
    with asking() as client:
        asks = [ask(f"a lamp {number}", user=f"u{number}") for number in range(120)]
        predict(client, asks)
    log = tmp_path / "log"
    code, out, err = command("monitor", log, "--home", tmp_path / "h")
    assert code == 1, err
    assert "constraint entropy >= 0.5: 0.0 [0.0, 0.0], broken" in out
    assert "no label has come" in out
    assert "FAULT: entropy >= 0.5 is broken" in out
    code, out, err = command("monitor", log, "--home", tmp_path / "h", "--rollback")
    assert code == 1, err
    assert "FAULT: entropy >= 0.5 is broken" in out
    assert f"not rolled back: {deploy}: generation 1 replaced nothing" in out
    code, out, err = command("monitor", log, "--home", tmp_path / "h", "--rollback", "--retune", "--json")
    assert (code, "no text; `chamtune serve --texts` keeps them" in err) == (65, True)
    assert json.loads(out)["rolled_back"]["reason"].startswith(f"{deploy}: generation 1")


def test_a_change_for_the_worse_is_rolled_back_and_the_server_takes_it_over(
    asking, deploy, write_deployment, tmp_path, monkeypatch, command
):
    """Everybody wants 4, which the earlier generation answers; the present one answers 2, beside it as a shadow."""
    monkeypatch.setattr("serving.service.LOOK_S", 0.1)
    home, log = tmp_path / "h", tmp_path / "log"
    earlier, worse = (Deployment.load(write_deployment(tmp_path / str(label), favourite=label)) for label in (4, 2))
    shutil.rmtree(deploy)
    for one in (earlier, worse):
        left_out = ("generation", "chain", "folder", "files")
        publish(home, deploy, {key: value for key, value in one.config.items() if key not in left_out}, one.fitted)
    with asking(other=tmp_path / "4") as client:
        asks = [ask(f"a lamp {number}", user=f"u{number}") for number in range(40)]
        for answer in predict(client, asks):
            assert (answer["label"], answer["generation"]) == ("2", 2)
            feed(client, answer, "4")
        code, out, err = command("monitor", log, "--home", home, "--rollback", "--json")
        found = json.loads(out)
        assert code == 1, err
        assert (found["comparison"]["kind"], found["comparison"]["verdict"]) == ("paired", "worse")
        assert found["rolled_back"] == {"generation": 3, "restored_from": 1, "reason": None}
        until(lambda: client.get("/readyz").json()["generation"] == 3)
        answer = client.post("/predict", json=ask()).json()
        assert (answer["label"], answer["generation"]) == ("4", 3)
    assert read_config(deploy)["restored_from"] == 1


def test_texts_are_not_held_for_a_whole_log(tmp_path):
    line = {**dict.fromkeys(("user_id", "prior", "arm", "config"), "x"), "known": 1, "chars": 1, "generation": 1}
    line |= {"named": True, "at": "2026-01-01T00:00:00", "log_probs": {"a": 0.0}}
    log = Log(tmp_path, "questions")
    for _ in range(50):
        log.append([{**line, "input": "x" * 100_000, "profile": [{"text": "x" * 100_000}]}])
    tracemalloc.start()
    assert len(read_traffic(tmp_path)) == 50
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3_000_000


def test_a_label_that_is_replaced_counts_last_and_is_compared_as_it_came_first(asking, tmp_path):
    with asking() as client:
        one, other = predict(client, [ask("a"), ask("b")])
        for answer, label in ((other, "1"), (one, "2"), (other, "3")):
            feed(client, answer, label)
    found = read_traffic(tmp_path / "log")
    assert (found.gold.tolist(), found.first.tolist(), found.came.tolist()) == ([1, 2], [1, 0], [1, 0])


def test_a_log_of_nothing_is_refused(tmp_path, deploy):
    with pytest.raises(DataError, match="no log of a server"):
        watched(tmp_path, deploy)
    Log(tmp_path, "questions")
    with pytest.raises(DataError, match="nothing was asked yet"):
        watched(tmp_path, Path(deploy))
    assert read_config(deploy)["generation"] == 1


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"user_id": None}, "has a user_id of another kind than str"),
        ({"user_id": ...}, "has no user_id"),
        ({"log_probs": dict.fromkeys("12345", float("nan"))}, "has a log-probability that is no number"),
        ({"log_probs": dict.fromkeys("12345", "x")}, "has a log-probability that is no number"),
        ({"at": "soon"}, "has a time that cannot be read"),
        (None, "is no record"),
    ],
)
def test_a_line_that_is_none_is_named_wherever_it_is_read(asking, deploy, tmp_path, change, said):
    answered(asking, users=3)
    path = tmp_path / "log" / "questions-000001.jsonl"
    first, second, *rest = path.read_text().splitlines()
    changed = None if change is None else {**json.loads(second), **change}
    kept = changed and {name: value for name, value in changed.items() if value is not ...}
    path.write_text("\n".join([first, json.dumps(kept), *rest, ""]))
    for read in (
        lambda: watched(tmp_path / "log", deploy),
        lambda: replay(tmp_path / "log", Deployment.load(deploy)),
        lambda: labelled(tmp_path / "log", read_config(deploy)),
    ):
        with pytest.raises(DataError, match=f"{path}: line 2 {said}"):
            read()


def test_a_config_of_other_labels_answers_no_log(asking, tmp_path):
    answered(asking, users=3)
    log = tmp_path / "log"
    stranger, traffic = SimpleNamespace(terms=SimpleNamespace(labels=("1", "9"))), read_traffic(log)
    for answers in (lambda: replay(log, stranger), lambda: shadowed(log, stranger, traffic)):
        with pytest.raises(DataError, match="its labels are not those of the config"):
            answers()


def test_an_item_without_its_text_is_named_by_its_line(asking, deploy, tmp_path):
    answered(asking, users=3)
    path = tmp_path / "log" / "questions-000001.jsonl"
    changed = [{**json.loads(line), "profile": [{"id": "h"}]} for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(line) + "\n" for line in changed))
    with pytest.raises(DataError, match=f"{path}: line 1 has a history item without id or text"):
        replay(tmp_path / "log", Deployment.load(deploy))
    (tmp_path / "log" / "about.json").write_text("{")
    with pytest.raises(DataError, match="about.json: is no JSON object"):
        watched(tmp_path / "log", deploy)
