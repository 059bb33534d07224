"""What a log says: constraints, calibration, drift, two configs, users."""

from dataclasses import replace

import numpy as np
import pytest

from serving.drift import changed_users, drifts
from serving.monitor import (
    calibration,
    compared,
    comparison,
    constraints,
    doubts,
    faults,
    losers,
    ratio,
    reasons,
    report,
    standing,
    watched,
)
from serving.report_text import _constraint, lines
from serving.traffic import Traffic
from tests.serving.conftest import ask, feed

LABELS = ("1", "2", "3", "4", "5")


def made(n=2000, users=50, seed=0, sure=0.6, right=0.6):
    """Traffic of users at random: of the probability `sure` for the answer, and right in a share `right`."""
    rng = np.random.default_rng(seed)
    predicted = rng.integers(0, 5, n)
    log_probs = np.full((n, 5), np.log((1 - sure) / 4))
    log_probs[np.arange(n), predicted] = np.log(sure)
    gold = np.where(rng.random(n) < right, predicted, (predicted + 1) % 5)
    names = texts(f"u{number}" for number in rng.integers(0, users, n))
    times, requests = texts(f"{row:05d}" for row in range(n)), texts(map(str, range(n)))
    priors, arms, configs = (np.full(n, said, dtype=object) for said in ("user", "a", "c"))
    ones, chars, known = np.ones(n, dtype=int), rng.integers(20, 60, n), rng.integers(0, 9, n)
    return Traffic(
        LABELS, requests, times, names, ones > 0, log_probs, priors, gold, gold, np.arange(n), arms, configs, ones,
        chars, known, ones > 0, {},
    )  # fmt: skip


def texts(found):
    return np.array(list(found), dtype=object)


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


def answering(traffic, predicted):
    """The same traffic with these answers."""
    log_probs = np.full((len(traffic), 5), np.log(0.1))
    log_probs[np.arange(len(traffic)), predicted] = np.log(0.6)
    return replace(traffic, log_probs=log_probs)


def told_of(traffic, drift, **told):
    """A report's part on constraints, as faults are made of it."""
    return {"constraints": constraints(traffic, everything(traffic), told, drift), "comparison": None, "drift": drift}


def test_a_bound_that_is_broken_since_a_drift_is_a_fault_though_it_holds_over_all():
    """Of 800 answers the last 200 are nearly all alike; of all of them no label has a half."""
    traffic = made(n=800)
    alike = answering(
        traffic, np.where((everything(traffic) >= 600) & (everything(traffic) % 10 > 0), 0, traffic.predicted)
    )
    drift = drifts(alike)
    assert "label 1" in {one["what"] for one in drift}
    found = told_of(alike, drift, top1_share="<= 0.55", entropy=">= 0.1")
    share, entropy = found["constraints"]
    begin = max(one["since"] for one in drift)
    assert (share["state"], share["lately"]["state"], share["lately"]["since"]) == ("holds", "broken", begin)
    assert share["lately"]["interval"][0] > 0.55 > share["interval"][1]
    assert share["lately"]["answers"] == 800 - int(begin)
    assert standing(share) == f"holds over all; broken since {begin} UTC"
    assert (standing(entropy), entropy["lately"]["state"]) == ("holds", "holds")
    assert faults(found) == [f"top1_share <= 0.55 is broken since {begin} UTC"]
    assert reasons(found)[0][0] == faults(found)[0]
    assert doubts(found) == []


def test_a_later_drift_with_few_answers_hides_no_broken_bound():
    traffic = made(n=800)
    alike = answering(traffic, np.where(everything(traffic) >= 600, 0, traffic.predicted))
    found = told_of(alike, [{"since": "00600"}, {"since": "00790"}], top1_share="<= 0.55")
    assert faults(found) == ["top1_share <= 0.55 is broken since 00600 UTC"]
    few = replace(alike, users=texts([*alike.users[:600], *(f"u{row % 19}" for row in range(200))]))
    (one,) = told_of(few, [{"since": "00600"}], top1_share="<= 0.55")["constraints"]
    assert (standing(one), one["lately"]["state"]) == ("holds", "not measured: 19 users of 20")
    nobody = replace(alike, users=texts(f"u{row % 19}" for row in range(800)))
    (one,) = told_of(nobody, [], top1_share="<= 0.55")["constraints"]
    assert (one["interval"], one["state"]) == (None, "not measured: 19 users of 20")
    assert _constraint(one) == f"constraint top1_share <= 0.55: {one['state']}"


def test_without_a_drift_the_newest_quarter_is_shown_and_is_no_fault():
    traffic = made(n=800)
    alike = answering(traffic, np.where(everything(traffic) >= 600, 0, traffic.predicted))
    found = told_of(alike, [], top1_share="<= 0.55")
    assert faults(found) == []
    assert doubts(found) == ["the newest 200 answers break top1_share <= 0.55"]
    assert standing(found["constraints"][0]) == "holds over all; broken in the newest 200 answers"
    assert told_of(made(n=100), [], top1_share="<= 0.55")["constraints"][0]["lately"] is None
    over = told_of(alike, [], top1_share="<= 0.2")
    assert (faults(over), doubts(over)) == (["top1_share <= 0.2 is broken"], [])


@pytest.mark.slow
def test_at_its_bound_a_metric_is_rarely_called_broken_however_often_one_looks():
    """Something else drifts, users differ, and entropy is as it was: at the bound, look after look."""
    alarms = 0
    for seed in range(12):
        traffic, rng = made(n=750, users=60, seed=seed), np.random.default_rng(seed)
        taste = rng.dirichlet([5, 4.5, 4, 3.5, 3], 60)
        asks = np.array([int(user[1:]) for user in traffic.users])
        picks = (rng.random(750)[:, None] > taste.cumsum(axis=1)[asks]).sum(axis=1).clip(0, 4)
        shares, whole = taste.mean(axis=0), answering(traffic, picks)
        bound = f">= {-(shares * np.log2(shares)).sum():.6f}"
        looks = (
            told_of(whole.only(np.arange(n)), [{"since": "00150"}], entropy=bound) for n in (250, 300, 400, 550, 750)
        )
        alarms += any(look["constraints"][0]["lately"]["state"] == "broken" for look in looks)
    assert alarms <= 1


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
    (found,) = (one for one in drifts(longer) if one["what"] == "text length (characters)")
    assert found["since"] <= found["seen_at"]
    assert found["seen_at"] > "01000"
    assert (found["before"], found["after"]) == (pytest.approx(38, abs=2), pytest.approx(78, abs=2))
    known = replace(traffic, known=np.where(late(traffic, 1), 8, 20))
    (found,) = drifts(known)
    assert (found["what"], found["before"], found["after"]) == ("history length (items)", 20.0, 8.0)
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
    (own,) = (one for one in drifts(many) if one["what"] == "users' text length (times their first)")
    assert own["before"] == pytest.approx(1, abs=0.1)
    assert own["after"] > 2


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
    split = replace(traffic, arms=texts(np.where(in_b, "b", "a")), gold=gold, first=gold, split=0.5)
    assert comparison(observed(split), 0.02, None)["verdict"] == "worse"
    assert ratio(split)["fault"] is False
    assert ratio(replace(split, split=0.3))["fault"] is True
    assert ratio(traffic) is None


@pytest.mark.parametrize("split", [0.0, 0.5])
def test_what_a_look_has_counted_stays_whatever_labels_come_later(split):
    """Labels that come out of order, and labels that replace what a look has counted."""
    came = np.random.default_rng(1).permutation(400)
    whole = replace(with_shadow(made(n=400), 0.4), split=split, came=came)
    whole = replace(whole, shadow={}) if split else whole
    gold = np.where(came < 200, whole.gold, -1)
    early = replace(whole, gold=gold, first=gold)
    moved = replace(whole, gold=(whole.gold + 1) % 5)
    then = compared(early, everything(early), early.labelled)
    for later in (whole, moved):
        now = compared(later, everything(later), later.labelled)
        assert now.users[:200] == then.users
        assert now.values[:200].tolist() == then.values.tolist()


def test_users_who_lose_are_listed_shrunken():
    traffic = made(users=50, n=4000, right=0.7)
    harmed = np.array([user in ("u3", "u7") for user in traffic.users])
    shadow = {
        row: np.eye(5)[traffic.gold[row] if own else traffic.predicted[row]] for row, own in enumerate(harmed)
    }  # fmt: skip
    found = losers(replace(traffic, shadow=shadow), everything(traffic))
    assert {one["user"] for one in found[:2]} == {"u3", "u7"}
    assert 0.1 < found[0]["loss"] < 0.4
    assert all(one["own"] > 0 for one in found)
    assert {one["user"] for one in found} == {"u3", "u7"}
    worst = max(found, key=lambda one: one["own"])
    assert 0.2 < worst["loss"] < worst["own"] < 0.4


def test_the_lines_name_the_other_config_what_is_undecided_and_what_is_broken_lately(asking, other, deploy, tmp_path):
    with asking(other=other, texts=True) as client:
        for number in range(4):
            answer = client.post("/predict", json=ask(f"a lamp {number}", user=f"u{number}")).json()
            feed(client, answer, "2")
    found = report(watched(tmp_path / "log", deploy))
    said = lines({**found, "faults": [], "rolled_back": None, "retuned": None})
    (line,) = (one for one in said if one.startswith("accuracy of this one minus"))
    assert f"that of {other}: -1.000 no interval yet" in line
    assert line.endswith("go on, no decision yet")
    assert "  user u0: loses 1.000 on 1 labels, 1.000 shrunken" in said
    late = {"since": "2026-11-29T10:43:53", "answers": 200, "value": 0.79, "interval": [0.6, 0.9], "state": "broken"}
    row = {"metric": "top1_share", "bound": "<= 0.55", "value": 0.23, "interval": [0.2, 0.3], "state": "holds"}
    newest = {**found, "constraints": [{**row, "lately": {**late, "drifted": False}}], "faults": []}
    told = lines({**newest, "rolled_back": None, "retuned": None})
    row_told = "0.23 [0.2, 0.3], holds over all; broken in the newest 200 answers: 0.79 [0.6, 0.9], 200 answers"
    assert f"constraint top1_share <= 0.55: {row_told}" in told
    assert "no fault yet: the newest 200 answers break top1_share <= 0.55" in told
    anew = report(watched(tmp_path / "log", deploy, baseline=other))["other"]
    assert anew == str(other)
