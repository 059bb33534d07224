"""The path from the baseline to a setting, on a small real study."""

import numpy as np
import pytest

from studies.insights.path import ordered, path_of, target_of
from studies.runner import run_study
from studies.study import open_study


@pytest.fixture
def opened(spec_of, tmp_path, kept_scores, no_results):
    spec = spec_of(trials=20, warm_start=True, constraints={})
    run_study(spec, tmp_path)
    return open_study(spec, tmp_path)


def test_the_steps_add_up_to_the_whole_gain(opened):
    found = path_of(opened)
    assert found["measured_on"] == "tune"
    assert found["steps"]
    assert sum(step["gain"] for step in found["steps"]) == pytest.approx(found["gain"])
    assert found["gain"] == pytest.approx(found["after"] - found["before"])
    assert found["low"] <= found["gain"] <= found["high"]
    own = opened.objective.evaluate(target_of(opened, "accuracy").params)
    means = [own.correct[own.users[1] == user].mean() for user in range(len(own.users[0]))]
    assert found["error"] == pytest.approx(np.std(means, ddof=1) / np.sqrt(len(means)))  # all have two questions
    for step in found["steps"]:
        assert step["low"] <= step["gain"] <= step["high"]
        assert step["droppable"] == (step["low"] <= 0 <= step["high"])
        assert sum(step["users"].values()) == len(opened.splits.tune.questions) // 2


def test_every_parameter_that_differs_is_in_one_step(opened):
    target = target_of(opened, "accuracy")
    steps = [name for step in path_of(opened)["steps"] for name in step["values"]]
    baseline, end = opened.rooms.BASELINE.flat(), target.params.flat()
    assert sorted(steps) == sorted(name for name in end if end[name] != baseline[name])


@pytest.mark.slow
def test_a_strength_without_a_taste_is_changed_with_it(opened):
    names = ("calibration.gamma", "calibration.prior_mode")
    start = {f"{s}.{n}": getattr(own, n) for s, own in opened.rooms.BASELINE.stages for n in own.__slots__}
    end = {**start, names[0]: 1.0, names[1]: "user", "calibration.beta": 0.5}
    order = ordered(opened, start, end, "accuracy")
    assert set(order) == {names, ("calibration.beta",)}


@pytest.mark.parametrize("refit", [False, True])
def test_a_look_is_what_the_path_leads_to_and_is_measured_on(opened, refit):
    from studies.verdict.evidence import Evidence

    evidence = Evidence(opened.storage)
    params = opened.rooms.decode({"beta": 1.0})
    look = evidence.open(opened.record["id"], "state", opened.spec.name, opened.splits.confirm, 0.05)
    assert target_of(opened, "accuracy").part == "tune"  # opened and not closed: nothing was seen
    evidence.close(look, {"trial": 3, "params": params.flat(), "refit": refit}, 0.0)
    assert target_of(opened, "accuracy") == (params, 3, "confirm", refit)
    found = path_of(opened)
    assert [step["step"] for step in found["steps"]] == ["beta"]
    learned = opened.objective.refitting(refit)
    before, after = (learned.evaluate(p, "confirm") for p in (opened.rooms.BASELINE, params))
    assert found["gain"] == pytest.approx(after.metrics["accuracy"] - before.metrics["accuracy"])
