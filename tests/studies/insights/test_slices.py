"""The searched space, and the trials that a slice shows."""

import json

import numpy as np
import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from search_spaces import chain_space
from studies.insights.history import history, together
from studies.insights.report import as_json, insights_of
from studies.insights.slices import AGES, LEADING, MOST, slices, space
from studies.insights.trends import course, points
from tests.studies.insights.worlds import planted, trial


def numbered(trials):
    for number, made in enumerate(trials):
        made.number = number
    return trials


@pytest.mark.parametrize("maximize", [True, False])
def test_a_slice_holds_each_trial_where_it_was_and_marks_the_best(maximize):
    found = planted(100, maximize=maximize)
    made, trials = slices(found), found.trials
    strong = made["strong"]
    assert strong.at.tolist() == trials["params_strong"].tolist()
    assert strong.values.tolist() == trials["value"].tolist()
    assert strong.ages.tolist() == [n * AGES // 100 for n in range(100)]
    assert strong.left == 0
    for name, one in made.items():
        lead = trials["gain"].idxmax()
        assert (one.best, one.number, one.setting) == (lead, lead, trials.loc[lead, f"params_{name}"])
    weak, held = made["weak"], trials["params_weak"]
    assert weak.columns == ["a", "b", "c"]
    assert [weak.columns[round(at)] for at in weak.at] == held.tolist()
    assert np.ptp(weak.at[(held == "a").to_numpy()]) > 0.3


def test_of_many_trials_the_best_are_shown_and_others_of_all_ages():
    found = planted(10_000)
    for one in slices(found).values():
        assert len(one.at) == MOST
        assert one.left == 10_000 - MOST
        assert set(np.sort(found.trials["value"])[-LEADING:]) <= set(one.values)
        assert one.values[one.best] == found.trials["value"].max()
        assert (np.bincount(one.ages) > 30).all()


def test_an_infeasible_trial_is_no_best_and_what_cannot_be_drawn_has_no_slice():
    space_of = {
        "x": FloatDistribution(0.1, 100, log=True),
        "many": CategoricalDistribution([f"choice {i}" for i in range(20)]),
        "numbers": CategoricalDistribution([8, 2, 4]),
        "none": CategoricalDistribution([None, "some"]),
    }
    trials = [
        trial(
            {"x": 1.0 + i, "many": f"choice {i % 20}", "numbers": (8, 2, 4)[i % 3], "none": (None, "some")[i % 2]},
            i,
            space_of,
            {"c": float(i == 29)},
        )
        for i in range(30)
    ]
    made = slices(history("made", numbered(trials), ("v", "maximize")))
    assert set(made) == {"x", "numbers", "none"}
    assert made["x"].log
    assert (made["x"].number, made["x"].feasible.tolist()) == (28, [True] * 29 + [False])
    assert made["numbers"].columns == ["2", "4", "8"]
    assert made["none"].columns == ["None", "some"]
    failed = [optuna.create_trial(state=optuna.trial.TrialState.FAIL)]
    assert slices(history("failed", failed, ("v", "maximize"))) == {}


def test_slices_of_several_studies_are_of_ranks():
    made = slices(together([planted(30), planted(20, seed=1)]))
    assert len(made["strong"].at) == 50
    assert 0 < made["strong"].values.min() < made["strong"].values.max() < 1


def test_the_space_says_range_choices_scale_and_what_was_tried():
    found = planted(40)
    rows = space(found).set_index("parameter")
    assert rows.loc["strong", ["kind", "low", "high", "log", "distinct", "trials"]].tolist() == [
        "float", 0.0, 1.0, False, 40, 40,
    ]  # fmt: skip
    assert rows.loc["weak", "choices"] == ["a", "b", "c"]
    assert rows.loc["none", ["kind", "low", "high", "step", "distinct"]].tolist() == ["int", 0, 4, 1, 5]
    told = as_json(found, insights_of(found))["space"]
    assert {row["parameter"]: row["high"] for row in told} == {"strong": 1.0, "weak": None, "none": 4}
    json.dumps(told, allow_nan=False)


def test_when_a_parameter_is_read_is_told_of_what_was_searched():
    rooms = chain_space(["calibration"])
    chosen = {
        "gamma": FloatDistribution(0, 2),
        "kappa": FloatDistribution(1, 50),
        "beta": FloatDistribution(0, 2),
        "prior_mode": CategoricalDistribution(["user", "global", "uniform"]),
    }
    assert rooms.read_when("beta", chosen) == ""
    assert rooms.read_when("gamma", chosen) == "prior_mode is not uniform"
    assert rooms.read_when("kappa", chosen) == "prior_mode is user"
    assert rooms.read_when("prior_mode", chosen) == "gamma is not 0"
    adapter = chain_space(["adapter"])
    chosen = {"adapter": CategoricalDistribution(["none", "lora", "prefix"]), "epochs": IntDistribution(1, 4)}
    assert adapter.read_when("epochs", chosen) == "adapter is lora or prefix"
    assert adapter.read_when("epochs", {"epochs": chosen["epochs"]}) == ""


def test_running_time_is_that_of_all_trials_until_then():
    from datetime import datetime, timedelta

    begun, trials = datetime(2026, 1, 1), numbered([trial({}, value, {}) for value in (1, 3, 2, 4)])
    for made, seconds in zip(trials, (10, 20, None, 40), strict=True):
        made.datetime_start = begun
        made.datetime_complete = None if seconds is None else begun + timedelta(seconds=seconds)
    found = history("timed", trials, ("v", "maximize"))
    assert course(found)["seconds"].tolist() == [10, 30, 70]
    assert points(found)["seconds"].tolist() == [10, 30, 30, 70]
