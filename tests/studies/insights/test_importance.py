"""Importance against what was planted, against Optuna's own, and in its warnings."""

import numpy as np
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution

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
