"""Value scores against counts by hand, the two traps, and simulated truth."""

import numpy as np
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution

from studies.insights.history import Parameter, history
from studies.insights.values import good, levels, posterior, value_scores
from tests.studies.insights.worlds import of_values, planted, trial


def test_one_lucky_value_is_neither_first_nor_sure():
    """1024 once at .070, 2048 nine times about .032."""
    found = value_scores(of_values("batch", [(1024, 0.070), *((2048, 0.032 + 0.001 * i) for i in range(-4, 5))]))
    assert list(found["value"]) == ["2048", "1024"]
    lucky = found.iloc[1]
    assert (lucky["count"], lucky["good_count"], lucky["confidence"]) == (1, 1, "low")
    assert lucky["low"] < 1 < lucky["high"]
    assert lucky["ratio_raw"] == 2.0


def test_three_good_of_ten_score_one():
    pairs = [(x, v) for x in ("a", "b") for v in (1, 1, 1, 0, 0, 0, 0, 0, 0, 0)]
    found = value_scores(of_values("x", pairs))
    assert list(found["good_count"]) == [3, 3]
    assert found["score"].to_numpy() == pytest.approx([1, 1])
    assert found["ratio_raw"].to_numpy() == pytest.approx([0.5, 0.5])


def test_columns_are_the_counts_by_hand():
    pairs = [("a", v) for v in (9, 8, 1, 2, 3)] + [("b", v) for v in (7, 0, 0.5, 1.5, 2.5)]
    found = value_scores(of_values("x", pairs)).set_index("value")
    assert list(found.loc["a", ["count", "good_count", "best", "mean", "confidence"]]) == [5, 2, 9, 4.6, "high"]
    assert list(found.loc["b", ["count", "good_count", "best", "mean", "confidence"]]) == [5, 1, 7, 2.3, "high"]
    odds = (2 + 2 * 0.3) / (3 + 2 * 0.7) / (0.3 / 0.7)
    assert found.loc["a", "score"] == pytest.approx(odds)


def test_minimising_mirrors_maximising():
    up, down = (value_scores(planted(60, maximize=way)) for way in (True, False))
    assert list(up["score"]) == pytest.approx(list(down["score"]))
    assert list(up["best"]) == pytest.approx(list(-down["best"]))


def test_infeasible_trials_do_not_count():
    space = {"x": CategoricalDistribution(["a", "b"])}
    bad = [trial({"x": "a"}, 100, space, {"c": 1.0}) for _ in range(5)]
    fine = [trial({"x": "b"}, i, space, {"c": -1.0}) for i in range(5)]
    found = value_scores(history("h", [*bad, *fine], ("v", "maximize")))
    assert list(found["value"]) == ["b"]


@pytest.mark.parametrize(("count", "word"), [(1, "low"), (2, "low"), (3, "medium"), (4, "medium"), (5, "high")])
def test_confidence_is_by_count(count, word):
    found = value_scores(of_values("x", [("a", 1.0)] * count + [("b", 0.0)] * 6)).set_index("value")
    assert found.loc["a", "confidence"] == word


def test_equal_values_tell_nothing():
    found = value_scores(of_values("x", [("a", 1.0), ("b", 1.0)] * 5))
    assert list(found["score"]) == [1, 1]
    assert (found["low"] == 0).all()
    assert np.isinf(found["high"]).all()


def test_ties_at_the_limit_do_not_make_most_trials_good():
    chosen, limit = good(np.array([0.0] * 2 + [1.0] * 6 + [2.0] * 2))
    assert (chosen.sum(), limit) == (2, 2.0)


def test_continuous_values_are_binned_by_quantiles_and_categories_named():
    import pandas as pd

    column = pd.Series(np.linspace(0, 1, 40))
    found = levels(Parameter("x", "other", False, distribution=FloatDistribution(0, 1)), column)
    assert len(found.labels) == 5
    assert (found.member.sum(axis=0) == 8).all()
    assert (found.member.sum(axis=1) == 1).all()
    named = levels(Parameter("buyer_l2", "other", True), pd.Series([0.0, 0.0005, 0.001, 0.005, 0.01, 0.02]))
    assert named.labels == ["none", "light", "medium", "heavy"]
    assert list(named.member.sum(axis=0)) == [1, 2, 2, 1]


def test_items_of_a_trial_are_told_apart():
    space = {"x": CategoricalDistribution(["a"])}
    trials = [
        trial({"x": "a"}, v, space, attrs={"foreign_items": {"columns": items}})
        for v, items in [(3, ["id 32D", "day 4D"]), (2, ["id 32D"]), (1, ["day 4D"]), (0, [])]
    ]
    found = value_scores(history("h", trials, ("v", "maximize")))
    found = found[found["parameter"] == "columns"].set_index("value")
    assert list(found.loc["id 32D", ["count", "good_count"]]) == [2, 1]
    assert list(found.loc["day 4D", ["count", "good_count"]]) == [2, 1]


def coverage(runs: int, trials: int, values: int, seed: int = 0) -> float:
    """Share of the values of an unrelated parameter whose interval covers 1."""
    rng, covered, total = np.random.default_rng(seed), 0, 0
    for _ in range(runs):
        chosen, _ = good(rng.normal(size=trials))
        member = rng.integers(values, size=trials)[:, None] == np.arange(values)
        counts, goods = member.sum(axis=0), (member & chosen[:, None]).sum(axis=0)
        _, low, high = posterior(counts, goods, float(chosen.mean()))
        tried = counts > 0
        covered, total = covered + int(((low <= 1) & (high >= 1))[tried].sum()), total + int(tried.sum())
    return covered / total


@pytest.mark.parametrize(("trials", "values"), [(25, 3), (60, 4), (200, 6), (200, 2)])
def test_an_unrelated_parameters_interval_covers_one(trials, values):
    assert coverage(2000, trials, values) >= 0.93


def test_a_planted_value_is_ranked_first():
    """Sixty trials, four values, one of them 1.2 standard deviations better."""
    rng, first = np.random.default_rng(1), 0
    for _ in range(100):
        choices = rng.integers(4, size=60)
        values = rng.normal(size=60) + 1.2 * (choices == 2)
        found = value_scores(of_values("x", list(zip(map(int, choices), values, strict=True))))
        first += found.iloc[0]["value"] == "2"
    assert first >= 90
