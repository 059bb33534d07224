import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from statsmodels.stats.contingency_tables import mcnemar as sm_mcnemar

from personalization.errors import ChamtuneError
from personalization.evaluation import Evaluation
from personalization.metrics import METRICS
from tests.tiny import random_evaluation
from tracking.detection import design_effect, detectable_difference, intraclass, smallest_p
from tracking.impact import impact
from tracking.significance import (
    draws_for,
    exchange,
    mcnemar,
    paired_test,
    sign_flip,
    significance,
    user_interval,
    user_totals,
)


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 60), st.integers(0, 60))
def test_exact_mcnemar_equals_statsmodels(b, c):
    ours = mcnemar(b, c)
    theirs = sm_mcnemar([[5, b], [c, 5]], exact=True).pvalue if b + c else 1.0
    assert ours.p_exact == pytest.approx(theirs)
    assert ours.p_mid <= ours.p_exact + 1e-12


def test_mid_p_is_the_mean_of_the_exact_p_with_and_without_the_observed_table():
    assert mcnemar(2, 9).p_mid == pytest.approx((134 + 24) / 2**11 / 2)  # 134, 24: 2 * sums of 11 over 0..2, and 0..1
    assert mcnemar(4, 4).p_mid == pytest.approx(1 - 70 / 2**8 / 2)


def test_sign_flip_is_exact_for_few_users():
    assert sign_flip(np.array([1, 1, 1, 1, 1, 1])) == pytest.approx(2 / 2**6)
    assert sign_flip(np.array([0, 0, 0])) == 1.0
    assert sign_flip(np.array([3])) == 1.0


def test_sign_flip_keeps_its_level_with_correlated_questions_where_mcnemar_does_not():
    rng = np.random.default_rng(0)
    flips = mcnemars = 0
    rounds = 150
    for _ in range(rounds):
        shift = rng.normal(0, 0.3, 20)
        shares = [np.clip([0.2 - s / 3, 0.6, 0.2 + s / 3], 0.01, None) for s in shift]
        gains = np.array([rng.choice([-1, 0, 1], 20, p=own / own.sum()) for own in shares])
        flips += sign_flip(gains.sum(axis=1), draws=999) < 0.05
        mcnemars += mcnemar(int((gains == -1).sum()), int((gains == 1).sum())).p_mid < 0.05
    assert flips <= 13  # of 150 at level .05; a valid test exceeds it once in thirty times
    assert mcnemars > 2 * flips


def test_interval_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(200):
        sizes = rng.integers(2, 8, 40)
        gains = rng.binomial(sizes, 0.3) - rng.binomial(sizes, 0.2)
        low, high = user_interval(gains, sizes)
        covered += low <= 0.1 <= high
    assert 182 <= covered <= 198  # of 200 at 95 %
    assert user_interval(np.zeros(5), np.ones(5)) == (0.0, 0.0)


def test_significance_is_consistent(evaluations):
    baseline, candidate = evaluations
    result = significance(baseline, candidate)
    assert result["delta_accuracy"] == pytest.approx(result["accuracy"] - result["baseline_accuracy"])
    assert result["mcnemar"]["c"] - result["mcnemar"]["b"] == round(result["delta_accuracy"] * result["n"])
    assert result["ci95"][0] <= result["delta_accuracy"] <= result["ci95"][1]
    test = significance(baseline, candidate, ["nll"])["tests"]["nll"]
    assert test["delta"] == pytest.approx(baseline.metrics["nll"] - candidate.metrics["nll"])
    same = significance(baseline, baseline)
    assert (same["p_accuracy"], same["delta_accuracy"], same["ci95"]) == (1.0, 0.0, [0.0, 0.0])


@pytest.mark.parametrize("metric", METRICS)
def test_every_metric_is_tested_as_itself_in_its_own_units(evaluations, metric, monkeypatch):
    monkeypatch.setattr("tracking.significance.RESAMPLES", 299)
    baseline, candidate = evaluations
    test = paired_test(baseline, candidate, metric)
    sign = 1 if METRICS[metric].direction == "maximize" else -1
    assert (test["before"], test["after"]) == (baseline.metrics[metric], candidate.metrics[metric])
    assert test["delta"] == pytest.approx(sign * (test["after"] - test["before"]), abs=1e-9)
    assert test["interval"][0] <= test["delta"] <= test["interval"][1]
    back = paired_test(candidate, baseline, metric)
    assert (back["delta"], back["p_value"]) == (pytest.approx(-test["delta"], abs=1e-9), pytest.approx(test["p_value"]))


def test_a_metric_without_a_test_is_an_error(evaluations):
    for metric in ("helped", "changed_rate", "nonsense"):
        with pytest.raises(ChamtuneError, match=f"{metric}.*cannot be tested"):
            paired_test(*evaluations, metric)
        with pytest.raises(ChamtuneError, match="no mean"):
            evaluations[0].question_scores(metric)


def test_exchanging_answers_agrees_with_the_sign_flip_where_a_metric_is_a_mean(evaluations):
    """Balanced accuracy of golds that are all alike is accuracy."""
    baseline, candidate = (random_evaluation(seed, n=40, users=10, skill=skill) for seed, skill in ((1, 0.2), (2, 1.2)))
    baseline.gold[:] = candidate.gold[:] = 0
    gains, _ = user_totals(candidate, candidate.correct.astype(int) - baseline.correct.astype(int))
    assert exchange(baseline, candidate, "balanced_accuracy") == pytest.approx(sign_flip(gains), abs=1e-9)


def test_exchanging_answers_keeps_its_level():
    below = sum(
        exchange(random_evaluation(2 * seed, users=8), random_evaluation(2 * seed + 1, users=8), "macro_f1") < 0.1
        for seed in range(60)
    )
    assert below <= 12


def test_p_is_as_fine_as_the_level_needs(monkeypatch):
    monkeypatch.setattr("tracking.significance.RESAMPLES", 9999)
    everybody_gains = np.full(20, 3)
    level = 1e-4
    assert sign_flip(everybody_gains) > level
    assert sign_flip(everybody_gains, draws_for(level)) < level
    assert draws_for(0.05) == 9999


@pytest.mark.parametrize("metric", ["accuracy", "macro_f1"])
def test_a_test_draws_what_its_level_needs(metric, monkeypatch):
    monkeypatch.setattr("tracking.significance.RESAMPLES", 99)
    before, after = (random_evaluation(seed, n=120, users=24, skill=skill) for seed, skill in ((1, 0), (2, 3)))
    for level in (0.05, 0.02):
        smallest = pytest.approx(2 / (40 / level + 1))  # of a difference that no pattern drawn reaches
        assert paired_test(before, after, metric, level)["p_value"] == smallest
        assert significance(before, after, [metric], level)["tests"][metric]["p_value"] == smallest


def test_detectable_difference_solves_connors_formula():
    assert detectable_difference(100, 0.2) == pytest.approx(0.125, abs=0.006)
    assert detectable_difference(1000, 0.2) == pytest.approx(0.039, abs=0.002)
    assert detectable_difference(10, 0.1) is None
    assert detectable_difference(500, alpha=0.01) > detectable_difference(500)


def test_questions_of_one_user_tell_less_than_those_of_many():
    owners = np.repeat(np.arange(5), 1000)
    same, mixed = np.repeat([0, 1, 0, 1, 1], 1000), np.random.default_rng(0).integers(0, 2, 5000)
    assert intraclass(same, owners) == pytest.approx(1.0)
    assert intraclass(mixed, owners) < 0.01
    assert design_effect(1.0, owners) == pytest.approx(1000)
    assert detectable_difference(5000 / design_effect(1.0, owners)) is None
    assert smallest_p(5) == pytest.approx(2 / 2**5)


def test_intraclass_correlation_is_that_of_the_anova_table():
    import pandas as pd
    import statsmodels.api as sm
    from statsmodels.formula.api import ols

    rng = np.random.default_rng(3)
    owners = np.repeat(np.arange(30), 6)
    values = (rng.normal(size=180) + rng.normal(size=30)[owners] > 0).astype(int)
    table = sm.stats.anova_lm(ols("v ~ C(u)", pd.DataFrame({"v": values, "u": owners})).fit())
    between, within = table["mean_sq"]
    assert intraclass(values, owners) == pytest.approx((between - within) / (between + 5 * within))


def test_impact_counts_every_user_once(evaluations):
    baseline, candidate = evaluations
    result = impact(baseline, candidate)
    assert sum(result["by_gain"].values()) == result["users"] == 12
    assert len(result["needs_milder_setting"]) == result["by_gain"]["worse"]
    collapsed = random_evaluation(3, skill=0.0)
    collapsed.log_probs[:] = np.log([0.9, 0.025, 0.025, 0.025, 0.025])
    assert impact(collapsed, candidate)["before"]["one_label"] == 1.0


@pytest.mark.parametrize("metric", ["mae", "rmse"])
def test_scores_in_a_row_are_judged_by_their_distance(metric):
    rng = np.random.default_rng(0)
    gold, users = rng.integers(0, 5, 200), tuple(f"u{i // 4}" for i in range(200))

    def answers(predicted):
        log_probs = np.log(np.full((200, 5), 0.05) + 0.75 * np.eye(5)[predicted])
        return Evaluation(
            ("1", "2", "3", "4", "5"), tuple(map(str, range(200))), users, gold, log_probs, ["user"] * 200
        )

    near = answers(np.where(rng.random(200) < 0.4, gold, np.clip(gold + 1, 0, 4)))
    wild = answers(np.where(rng.random(200) < 0.6, gold, 4 - gold))
    assert wild.metrics["accuracy"] > near.metrics["accuracy"]
    test = paired_test(near, wild, metric)
    assert test["delta"] == pytest.approx(near.metrics[metric] - wild.metrics[metric])
    assert test["delta"] < 0
    assert test["p_value"] < 0.01
