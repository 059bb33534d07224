"""What a log says: constraints, calibration, drift, two configs, users."""

import json
import shutil
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from personalization.deployment import Deployment, read_config
from personalization.errors import DataError
from serving.drift import changed_users, drifts
from serving.log import Log
from serving.monitor import calibration, compared, comparison, constraints, faults, losers, ratio, watched
from serving.replay import replay
from serving.traffic import Traffic, read_traffic
from studies.verdict.deployments import publish
from tests.serving.conftest import ask, items

LABELS = ("1", "2", "3", "4", "5")


def made(n=2000, users=50, seed=0, sure=0.6, right=0.6):
    """Traffic of users at random: of the probability `sure` for the answer, and right in a share `right`."""
    rng = np.random.default_rng(seed)
    predicted = rng.integers(0, 5, n)
    log_probs = np.full((n, 5), np.log((1 - sure) / 4))
    log_probs[np.arange(n), predicted] = np.log(sure)
    gold = np.where(rng.random(n) < right, predicted, (predicted + 1) % 5)
    names = tuple(f"u{number}" for number in rng.integers(0, users, n))
    times = tuple(f"{row:05d}" for row in range(n))
    return Traffic(
        LABELS, tuple(map(str, range(n))), times, names, np.ones(n, dtype=bool), log_probs, ("user",) * n, gold,
        ("a",) * n, ("c",) * n, np.ones(n, dtype=int), rng.integers(20, 60, n), rng.integers(0, 9, n), {},
    )  # fmt: skip


def everything(traffic):
    return np.arange(len(traffic))


def test_constraints_hold_are_broken_or_are_not_measured():
    told = {"entropy": ">= 1", "top1_share": "<= 0.1", "accuracy": ">= 0.6", "accuracy_gain": ">= 0"}
    found = {one["metric"]: one for one in constraints(made(), everything(made()), told)}
    assert found["entropy"]["state"] == "holds"
    assert found["entropy"]["value"] == pytest.approx(np.log2(5), abs=0.01)
    assert found["top1_share"]["state"] == "broken"
    assert found["accuracy"]["state"] == "doubtful"
    assert found["accuracy_gain"]["state"] == "not measured: 0 answers of 100"
    low, high = found["accuracy"]["interval"]
    assert low < found["accuracy"]["value"] < high


@pytest.mark.parametrize(("sure", "state"), [(0.6, "holds"), (0.8, "too sure"), (0.4, "not sure enough")])
def test_the_estimate_of_accuracy_is_checked_against_the_labels(sure, state):
    traffic = made(sure=sure)
    found = calibration(traffic, everything(traffic), everything(traffic))
    assert (found["state"], found["estimate"]) == (state, pytest.approx(sure))
    assert found["accuracy"] == pytest.approx(0.6, abs=0.03)
    bare = calibration(traffic, everything(traffic), np.array([], dtype=int))
    assert (bare["estimate"], bare["state"]) == (pytest.approx(sure), "no label has come")


def observed(traffic):
    return compared(traffic, everything(traffic), everything(traffic))


def late(traffic, value, share=1.0):
    """Values [n] with another one in the second half, for this share of the users."""
    chosen = np.array([int(user[1:]) < share * 50 for user in traffic.users])
    return np.where((np.arange(len(traffic)) >= len(traffic) / 2) & chosen, value, 0)


def test_no_drift_where_there_is_none():
    assert sum(len(drifts(made(seed=seed))) for seed in range(5)) == 0
    assert sum(len(changed_users(made(seed=seed))) for seed in range(5)) == 0


def test_planted_drift_is_found_in_length_labels_and_a_group_of_users():
    traffic = made()
    longer = replace(traffic, chars=traffic.chars + late(traffic, 40))
    (found,) = (one for one in drifts(longer) if one["what"] == "text length (log)")
    assert found["since"] <= found["seen_at"]
    assert found["seen_at"] > "01000"
    assert found["after"] > found["before"] + 0.3
    shifted = np.where((np.arange(2000) >= 1000) & (traffic.predicted == 0))[0]
    moved = traffic.log_probs.copy()
    moved[np.ix_(shifted, [0, 3])] = moved[np.ix_(shifted, [3, 0])]
    assert {one["what"] for one in drifts(replace(traffic, log_probs=moved, gold=-np.ones(2000, int)))} == {
        "label 1",
        "label 4",
    }
    group = replace(traffic, chars=traffic.chars + late(traffic, 200, share=0.1).astype(int))
    assert {one["user"] for one in changed_users(group)} == {f"u{number}" for number in range(5)}
    many = replace(traffic, chars=traffic.chars + late(traffic, 200, share=0.5).astype(int))
    assert "users' text length" in {one["what"] for one in drifts(many)}


def test_an_accuracy_that_falls_is_found_where_the_answers_stay_what_they_were():
    traffic = made()
    wrong = np.where(late(traffic, 1).astype(bool), (traffic.predicted + 1) % 5, traffic.gold)
    found = {one["what"]: one for one in drifts(replace(traffic, gold=wrong))}
    assert set(found) == {"accuracy where labels came", "probability of the right label"}
    told = found["accuracy where labels came"]
    assert told["before"] == pytest.approx(0.6, abs=0.05)
    assert told["after"] < 0.05
    assert "00995" < told["since"] < "01005"
    assert told["since"] < told["seen_at"] < "01200"


def with_shadow(traffic, drop):
    """A shadow that is right where the deployment is, but for a share `drop` of the wrong answers made right."""
    rng, shadow = np.random.default_rng(0), {}
    for row in range(len(traffic)):
        said = traffic.gold[row] if rng.random() < drop else traffic.predicted[row]
        shadow[row] = np.eye(5)[said]
    return replace(traffic, shadow=shadow)


def test_a_deployment_that_is_worse_than_its_shadow_is_said():
    traffic = with_shadow(made(users=200, n=4000), 0.4)
    found = comparison(observed(traffic), 0.02, None)
    assert (found["kind"], found["verdict"]) == ("paired", "worse")
    assert found["interval"][0] < -0.16 < found["interval"][1]
    assert faults({"constraints": [], "comparison": found}) == ["it is worse than the other config"]
    same = with_shadow(made(users=200, n=4000), 0.0)
    told = comparison(observed(same), 0.05, None)
    assert told["verdict"] in ("equal", "go on")
    assert told["mean"] == 0


def test_a_split_compares_groups_of_users_and_their_ratio():
    traffic = made(users=400, n=8000, right=0.6)
    in_b = np.array([int(user[1:]) % 2 == 1 for user in traffic.users])
    gold = np.where(in_b, traffic.predicted, traffic.gold)
    split = replace(traffic, arms=tuple(np.where(in_b, "b", "a")), gold=gold, split=0.5)
    assert comparison(observed(split), 0.02, None)["verdict"] == "worse"
    assert ratio(split)["fault"] is False
    assert ratio(replace(split, split=0.3))["fault"] is True
    assert ratio(traffic) is None


def test_users_who_lose_are_listed_shrunken():
    traffic = made(users=50, n=4000, right=0.7)
    harmed = np.array([user in ("u3", "u7") for user in traffic.users])
    shadow = {
        row: np.eye(5)[traffic.gold[row] if own else traffic.predicted[row]] for row, own in enumerate(harmed)
    }  # fmt: skip
    found = losers(replace(traffic, shadow=shadow), everything(traffic))
    assert {one["user"] for one in found[:2]} == {"u3", "u7"}
    assert 0.1 < found[0]["loss"] < 0.4


def test_replay_gives_what_was_given_and_needs_texts(asking, deploy, write_deployment, tmp_path, command):
    with asking(texts=True) as client:
        for number in range(6):
            more = {"user": f"u{number}", "history": items(*"2" * (number % 3)), "date": "2026-01-02"}
            request = client.post("/predict", json=ask(f"a lamp {number}", **more)).json()["request"]
            client.post("/feedback", json={"request": request, "label": "2"})
    log = tmp_path / "log"
    given = read_traffic(log)
    same = replay(log, Deployment.load(deploy), tmp_path / "out.jsonl")
    assert same == {"answers": 6, "changed": 0.0, "labelled": 6, "accuracy_then": 0.6667, "accuracy_now": 0.6667}
    out = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert tuple(line["request"] for line in out) == given.requests
    apart = np.array([[line["log_probs"][label] for label in given.labels] for line in out]) - given.log_probs
    assert np.abs(apart).max() < 1e-4
    other = write_deployment(tmp_path / "other", favourite=2)
    code, out, _ = command("replay", log, "--config", other, "--home", tmp_path / "h", "--json")
    assert (code, json.loads(out)["changed"], json.loads(out)["accuracy_now"]) == (0, 0.3333, 1.0)
    Log(log, "questions").append([{**given_line(log), "input": "blake2b:00"}])
    with pytest.raises(DataError, match="has no text; `chamtune serve --texts` keeps them"):
        replay(log, Deployment.load(deploy))


def given_line(log):
    return json.loads(next(log.glob("questions-*")).read_text().splitlines()[0])


def test_monitor_says_what_is_broken_and_rolls_back(asking, deploy, write_deployment, tmp_path, command):
    """Everybody is answered alike: the entropy that the study asked for is gone."""
    with asking() as client:
        asks = [ask(f"a lamp {number}", user=f"u{number}") for number in range(120)]
        client.post("/predict", json={"questions": asks})
    log = tmp_path / "log"
    code, out, err = command("monitor", log, "--home", tmp_path / "h")
    assert code == 1, err
    assert "constraint entropy >= 0.5: 0.0 [0.0, 0.0], broken" in out
    assert "no label has come" in out
    assert "FAULT: entropy >= 0.5 is broken" in out
    code, out, err = command("monitor", log, "--home", tmp_path / "h", "--rollback")
    assert (code, "replaced nothing that is kept" in err) == (64, True)


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
        for answer in client.post("/predict", json={"questions": asks}).json()["answers"]:
            assert (answer["label"], answer["generation"]) == ("2", 2)
            client.post("/feedback", json={"request": answer["request"], "label": "4"})
        code, out, err = command("monitor", log, "--home", home, "--rollback", "--json")
        found = json.loads(out)
        assert code == 1, err
        assert (found["comparison"]["kind"], found["comparison"]["verdict"]) == ("paired", "worse")
        assert found["rolled_back"] == {"generation": 3, "restored_from": 1}
        end = time.monotonic() + 20
        while client.get("/readyz").json()["generation"] != 3 and time.monotonic() < end:
            time.sleep(0.05)
        answer = client.post("/predict", json=ask()).json()
        assert (answer["label"], answer["generation"]) == ("4", 3)
    assert read_config(deploy)["restored_from"] == 1


def test_a_log_of_nothing_is_refused(tmp_path, deploy):
    with pytest.raises(DataError, match="no log of a server"):
        watched(tmp_path, deploy)
    Log(tmp_path, "questions")
    with pytest.raises(DataError, match="nothing was asked yet"):
        watched(tmp_path, Path(deploy))
    assert read_config(deploy)["generation"] == 1
