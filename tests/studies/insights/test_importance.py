"""Importance against what was planted, against Optuna's own, and in its warnings."""

import numpy as np
import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState

from personalization.errors import UsageError
from studies.insights.history import history
from studies.insights.importance import FIXED, SCARCE, UNREAD, feasibility_importance, importance, of_optuna
from tests.studies.insights.worlds import of_values, planted, trial
from tests.tiny import of_table


@pytest.mark.parametrize("maximize", [True, False])
def test_the_planted_order_is_found_with_intervals_that_tell_it(maximize):
    found = importance(planted(200, maximize=maximize)).set_index("parameter")
    assert list(found.index) == ["strong", "weak", "none"]
    assert found.loc["strong", "low"] > found.loc["weak", "high"]
    assert found.loc["weak", "low"] > found.loc["none", "importance"]
    assert found.loc["none", "importance"] < 0.02
    assert found.loc["none", "low"] == 0
    assert found["share"].sum() == pytest.approx(1)


def test_maximise_and_minimise_agree():
    up, down = (importance(planted(80, maximize=way)) for way in (True, False))
    assert up["importance"].to_numpy() == pytest.approx(down["importance"].to_numpy())


def test_an_unrelated_parameter_explains_nothing_on_average():
    """Chance is taken off: the estimate before it is held at 0 has mean 0."""
    from studies.insights.importance import explained
    from studies.insights.values import good

    rng, found = np.random.default_rng(0), []
    for _ in range(300):
        chosen, _ = good(rng.normal(size=50))
        member = rng.integers(5, size=50)[:, None] == np.arange(5)
        share, chance = explained(member, chosen, np.ones((1, 50), dtype=np.float32))
        found.append(share[0] - chance[0])
    assert abs(np.mean(found)) < 3 * np.std(found) / np.sqrt(300)
    assert np.std(found) > 0


@pytest.mark.parametrize("maximize", [True, False])
@pytest.mark.parametrize("evaluator", of_table(["ped_anova", "fanova"], "ped_anova"))
def test_optunas_own_evaluators_agree_on_the_order(evaluator, maximize):
    found = of_optuna(planted(120, maximize=maximize), evaluator)
    assert list(found) == ["strong", "weak", "none"]


@pytest.mark.parametrize(
    ("first", "last"),
    [
        (FloatDistribution(0, 2), FloatDistribution(0.4, 0.6)),
        (FloatDistribution(0, 2), FloatDistribution(0.4, 0.6, log=True)),
        (IntDistribution(0, 20), IntDistribution(4, 8, step=2)),
        (CategoricalDistribution(["a", "b", None]), CategoricalDistribution(["a"])),
        (CategoricalDistribution(["a", "b", None]), FloatDistribution(0, 1)),
    ],
)
def test_optunas_evaluators_judge_studies_whose_ranges_changed(first, last):
    def at(found, place):
        if isinstance(found, CategoricalDistribution):
            return found.choices[place % len(found.choices)]
        return found.low if isinstance(found, IntDistribution) and place else found.low + place / 20

    kinds = {"k": CategoricalDistribution([None, "x"])}
    trials = [
        trial({"x": at(found, i), "k": kinds["k"].choices[i % 2]}, i % 4, {"x": found, **kinds})
        for i, found in enumerate([first] * 3 + [last])
        for _ in range(4)
    ]
    assert set(of_optuna(history("h", trials, ("v", "maximize")), "ped_anova")) == {"x", "k"}


@pytest.mark.parametrize("evaluator", ["ped_anova", "fanova", "mdi"])
def test_optunas_evaluators_cannot_judge_without_trials(evaluator):
    space = {"x": FloatDistribution(0, 1)}
    failed = optuna.create_trial(state=TrialState.FAIL, params={"x": 0.5}, distributions=space)
    for trials in ([], [failed]):
        with pytest.raises(UsageError, match=f"{evaluator} cannot judge 0 feasible trials of h"):
            of_optuna(history("h", trials, ("v", "maximize")), evaluator)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_what_optuna_asserts_is_one_line():
    space = {"x": FloatDistribution(0, 1)}
    trials = [trial({"x": i / 20}, (1e308, -1e308)[i % 2], space) for i in range(20)]
    with pytest.raises(UsageError, match="fanova cannot judge 20 feasible trials of h"):
        of_optuna(history("h", trials, ("v", "maximize")), "fanova")


def test_an_unknown_evaluator_is_refused():
    with pytest.raises(UsageError, match="no importance 'shap'; there are ped_anova, fanova, mdi"):
        of_optuna(planted(20), "shap")


def test_what_breaks_a_constraint_is_named_by_constraint():
    space = {"x": FloatDistribution(0, 1), "y": FloatDistribution(0, 1)}
    rng, trials = np.random.default_rng(0), []
    for _ in range(120):
        x, y = rng.random(2)
        trials.append(trial({"x": x, "y": y}, y, space, {"size": x - 0.5, "cost": y - 0.8}))
    found = feasibility_importance(history("h", trials, ("v", "maximize")))
    tops = {name: rows.iloc[0]["parameter"] for name, rows in found.groupby("constraint")}
    assert (tops["size"], tops["cost"]) == ("x", "y")
    size = found[found["constraint"] == "size"]
    assert size.iloc[0]["low"] > size.iloc[1]["high"]
    assert size.iloc[0]["kept"] == pytest.approx(0.5, abs=0.12)


def test_what_cannot_matter_is_said():
    space = {"x": CategoricalDistribution(["a"]), "y": FloatDistribution(0, 1)}
    trials = [trial({"x": "a", "y": i / 20}, i, space) for i in range(20)]
    found = importance(history("h", trials, ("v", "maximize"))).set_index("parameter")
    assert found.loc["x", "warning"] == "cannot matter: a in every trial"
    assert found.loc["x", "importance"] == 0
    assert found.loc["y", "warning"] == ""


def test_few_trials_are_no_ground():
    found = importance(planted(6))
    assert (found["importance"] == 0).all()
    assert found[["low", "high"]].isna().all(axis=None)
    assert (found["unjudged"] == SCARCE).all()
    assert found["warning"].str.startswith("too few trials to tell: 6 of 6").all()


def test_what_was_not_estimated_has_no_interval_and_comes_last():
    space = {"one": CategoricalDistribution(["a", "b"]), "rare": FloatDistribution(0, 1), "y": FloatDistribution(0, 1)}
    never = {**space, "never": CategoricalDistribution(["a"])}
    trials = []
    for i in range(20):
        params = {"one": "a", "y": (7 * i % 20) / 20} | ({"rare": i / 20} if i < 4 else {})
        trials.append(trial(params, i, {name: space[name] for name in params}))
    trials.append(trial({"one": "a", "y": 0.1, "rare": 0.2, "never": "a"}, 1, never, {"c": 1.0}))
    found = importance(history("h", trials, ("v", "maximize"))).set_index("parameter")
    assert found.index[0] == "y"
    told = found.loc[["one", "never", "rare"]]
    assert list(told["unjudged"]) == [FIXED, UNREAD, SCARCE]
    assert list(told["only"].fillna("")) == ["a", "", ""]
    assert (told["importance"] == 0).all()
    assert told[["low", "high"]].isna().all(axis=None)
    assert found.loc["y", "unjudged"] == ""
    assert 0 <= found.loc["y", "low"] <= found.loc["y", "high"]


def test_several_values_within_a_bin_are_not_fixed():
    found = importance(of_values("x", [(0.1 * i, i) for i in range(3)])).set_index("parameter")
    assert found.loc["x", "unjudged"] == SCARCE
