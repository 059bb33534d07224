"""Trials carried into a changed space, or as settings into a study of other data."""

import optuna
import pytest

from personalization.errors import UsageError
from studies.carried import CARRIED, QUEUED, carried_said, carry_over, likely_best
from studies.recovery import POINT
from studies.runner import run_study
from studies.study import RECORD, find_study, open_study, ranked
from studies.trial import MEASURED

pytestmark = pytest.mark.usefixtures("kept_scores", "no_results")


@pytest.fixture
def first(spec_of, tmp_path):
    """A study of 15 random trials."""
    spec = spec_of(name="first", trials=15, sampler="random", space={"beta": {"low": 0.0, "high": 1.0}})
    run_study(spec, tmp_path)
    return find_study("first", tmp_path, None)


def test_a_wider_space_keeps_every_trial_as_it_would_measure_it(first, spec_of, tmp_path):
    spec = spec_of(name="wider", trials=18, constraints={"entropy": ">= 2.0"})
    row = carry_over(spec, tmp_path, ["first"])[0]
    assert (row["kept"], row["outside"], carried_said(row)) == (15, {}, "kept 15 trials of first")
    run_study(spec, tmp_path)
    trials = find_study("wider", tmp_path, None).trials
    assert len(trials) == 18
    for mine, was in zip(trials[:15], first.trials, strict=True):
        assert mine.user_attrs[CARRIED] == {"study": "first", "trial": was.number}
        assert (mine.values, mine.params) == (was.values, was.params)
        entropy = was.user_attrs[MEASURED]["metrics"]["entropy"]
        assert mine.constraints == {"entropy": pytest.approx((2.0 - entropy) / 2.0)}
    assert all(CARRIED not in trial.user_attrs for trial in trials[15:])


def test_what_does_not_fit_is_counted_by_its_reason(first, spec_of, tmp_path):
    spec = spec_of(name="narrow", space={"beta": {"low": 0.0, "high": 0.5}, "prior_mode": ["user", "global"]})
    row = carry_over(spec, tmp_path, ["first"])[0]
    beta = sum(t.params["beta"] > 0.5 for t in first.trials)
    uniform = sum(t.params["beta"] <= 0.5 and t.params["prior_mode"] == "uniform" for t in first.trials)
    assert row["kept"] == 15 - beta - uniform
    assert row["outside"] == {
        reason: count
        for reason, count in (
            ("beta is outside the new range", beta),
            ("prior_mode is outside the new range", uniform),
        )
        if count
    }
    assert "left out" in carried_said(row)


def test_a_new_parameter_has_its_baseline_in_what_is_kept(spec_of, tmp_path):
    run_study(spec_of(name="few", trials=6, space={"tau": 1.0, "beta": 0.0}), tmp_path)
    spec = spec_of(name="more", space={"beta": {"low": 0.0, "high": 2.0}})
    assert carry_over(spec, tmp_path, ["few"])[0]["kept"] == 6
    assert {trial.params["beta"] for trial in find_study("more", tmp_path, None).trials} == {0.0}


def test_what_a_trial_left_unused_and_would_act_now_is_no_point_of_the_space(spec_of, tmp_path):
    chain = ["adapter", "calibration"]
    space = {"adapter": ["lora"], "blend": [0.0], "rank": 2, "epochs": 1, "beta": {"low": 0.0, "high": 1.0}}
    run_study(spec_of(name="unused", chain=chain, space=space, trials=2, sampler="random"), tmp_path)
    acting = spec_of(name="acting", chain=chain, space={**space, "blend": [0.5, 1.0]})
    row = carry_over(acting, tmp_path, ["unused"])[0]
    assert (row["kept"], sum(row["outside"].values())) == (0, 2)


@pytest.mark.slow
def test_the_same_command_goes_on_and_carries_nothing_twice(first, spec_of, tmp_path):
    spec = spec_of(name="again")
    carry_over(spec, tmp_path, ["first"])
    row = carry_over(spec, tmp_path, ["first"])[0]
    assert carried_said(row) == "15 trials of first were carried here before"
    assert len(find_study("again", tmp_path, None).trials) == 15


def test_what_was_killed_is_carried_to_its_end_and_what_came_later_is_not(first, spec_of, tmp_path, monkeypatch):
    spec, add = spec_of(name="killed"), optuna.Study.add_trials

    def die(study, trials):
        add(study, trials[:4])
        raise KeyboardInterrupt

    monkeypatch.setattr(optuna.Study, "add_trials", die)
    with pytest.raises(KeyboardInterrupt):
        carry_over(spec, tmp_path, ["first"])
    monkeypatch.setattr(optuna.Study, "add_trials", add)
    first.add_trial(first.trials[0])
    assert carry_over(spec, tmp_path, ["first"])[0]["kept"] == 11
    carried = [trial.user_attrs[CARRIED]["trial"] for trial in find_study("killed", tmp_path, None).trials]
    assert carried == list(range(15))
    assert carry_over(spec, tmp_path, ["first"])[0]["already"]


def test_of_other_data_the_best_settings_are_queued_by_rank(first, spec_of, tmp_path):
    data = {"path": str(first.user_attrs[RECORD]["places"]["data.path"][0])}
    spec = spec_of(name="elsewhere", data=data, trials=3, optimize={"nll": "minimize"})  # nothing is solved again
    row = carry_over(spec, tmp_path, ["first"])[0]  # other shares: other tune users
    assert (row["kept"], row["queued"]) == (0, min(QUEUED, sum(1 for _ in ranked(first.trials, {"a": "maximize"}))))
    run_study(spec, tmp_path)
    best = [trial.params for trial in likely_best(first, first.trials)][:3]
    assert [trial.params for trial in find_study("elsewhere", tmp_path, None).trials[:3]] == best


def test_another_chain_and_itself_are_refused(first, spec_of, tmp_path):
    with pytest.raises(UsageError, match="a study cannot go on from itself"):
        carry_over(spec_of(name="first"), tmp_path, ["first"])
    with pytest.raises(UsageError, match="settings of one mean nothing in the other"):
        carry_over(spec_of(name="chain", chain=["prompt", "calibration"]), tmp_path, ["first"])
    with pytest.raises(UsageError, match="no study 'nowhere'"):
        carry_over(spec_of(name="x"), tmp_path, ["nowhere"])


def test_the_likely_best_are_not_the_luckiest(first, monkeypatch):
    monkeypatch.setattr("studies.insights.likely.ENOUGH", 2)
    found = likely_best(first, first.trials)
    luckiest = list(ranked(first.trials, {"accuracy": "maximize"}))
    assert sorted(t.number for t in found) == sorted(t.number for t in luckiest)
    assert [t.number for t in found] != [t.number for t in luckiest]


@pytest.mark.slow
def test_what_is_queued_of_other_data_is_solved_again_where_accuracy_is_the_goal(first, spec_of, tmp_path):
    data = {"path": str(first.user_attrs[RECORD]["places"]["data.path"][0])}
    chosen = likely_best(first, first.trials)[0]
    for goal, moves in (({"accuracy": "maximize"}, True), ({"nll": "minimize"}, False)):
        spec = spec_of(name=f"by-{next(iter(goal))}", data=data, optimize=goal, trials=1)
        carry_over(spec, tmp_path, ["first"])
        opened = open_study(spec, tmp_path)
        queued = opened.study.trials[0].user_attrs[POINT]
        assert queued.keys() == chosen.params.keys()
        changed = {name for name, value in queued.items() if value != chosen.params[name]}
        assert changed <= {"beta", "gamma", "source"}
        assert bool(changed) == moves
        before, after = (
            opened.objective.evaluate(opened.rooms.decode(point)).metrics["accuracy"]
            for point in (chosen.params, queued)
        )
        assert after >= before
