import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from statsmodels.stats.contingency_tables import mcnemar as sm_mcnemar

from personalization.evaluation import Evaluation
from tests.tiny import random_evaluation
from tracking.impact import impact
from tracking.significance import detectable_difference, mcnemar, sign_flip, significance, user_interval


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 60), st.integers(0, 60))
def test_exact_mcnemar_equals_statsmodels(b, c):
    ours = mcnemar(b, c)
    theirs = sm_mcnemar([[5, b], [c, 5]], exact=True).pvalue if b + c else 1.0
    assert ours.p_exact == pytest.approx(theirs)
    assert ours.p_mid <= ours.p_exact + 1e-12


def test_mid_p_of_published_formula_by_hand():
    from scipy.stats import binom

    assert mcnemar(2, 9).p_mid == pytest.approx(2 * binom.cdf(2, 11, 0.5) - binom.pmf(2, 11, 0.5))
    assert mcnemar(4, 4).p_mid == pytest.approx(1 - binom.pmf(4, 8, 0.5) / 2)


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
        gains = np.array(
            [
                rng.choice(
                    [-1, 0, 1],
                    20,
                    p=np.clip([0.2 - s / 3, 0.6, 0.2 + s / 3], 0.01, None)
                    / np.clip([0.2 - s / 3, 0.6, 0.2 + s / 3], 0.01, None).sum(),
                ).tolist()
                for s in shift
            ]
        )
        flips += sign_flip(gains.sum(axis=1)) < 0.05
        mcnemars += mcnemar(int((gains == -1).sum()), int((gains == 1).sum())).p_mid < 0.05
    assert flips / rounds < 0.11
    assert mcnemars / rounds > flips / rounds


def test_interval_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(60):
        sizes = rng.integers(2, 8, 40)
        gains = rng.binomial(sizes, 0.3) - rng.binomial(sizes, 0.2)
        low, high = user_interval(gains, sizes)
        covered += low <= 0.1 <= high
    assert covered >= 50
    assert user_interval(np.zeros(5), np.ones(5)) == (0.0, 0.0)


def test_significance_is_consistent(evaluations):
    baseline, candidate = evaluations
    result = significance(baseline, candidate)
    assert result["delta_accuracy"] == pytest.approx(result["accuracy"] - result["baseline_accuracy"])
    assert result["mcnemar"]["c"] - result["mcnemar"]["b"] == round(result["delta_accuracy"] * result["n"])
    assert result["ci95"][0] <= result["delta_accuracy"] <= result["ci95"][1]
    by_likelihood = significance(baseline, candidate, "nll")
    assert by_likelihood["p_accuracy"] == result["p_accuracy"] == result["p_value"]
    assert by_likelihood["delta"] == pytest.approx(baseline.metrics["nll"] - candidate.metrics["nll"])
    same = significance(baseline, baseline)
    assert (same["p_value"], same["delta_accuracy"], same["ci95"]) == (1.0, 0.0, [0.0, 0.0])


def test_detectable_difference_solves_connors_formula():
    assert detectable_difference(100, 0.2) == pytest.approx(0.125, abs=0.006)
    assert detectable_difference(1000, 0.2) == pytest.approx(0.039, abs=0.002)
    assert detectable_difference(10, 0.1) is None
    assert detectable_difference(500, alpha=0.01) > detectable_difference(500)


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
    test = significance(near, wild, metric)
    assert (test["metric"], test["delta"] < 0) == (metric, True)
    squared = near.metrics["rmse"] ** 2 - wild.metrics["rmse"] ** 2
    assert test["delta"] == pytest.approx(squared if metric == "rmse" else near.metrics["mae"] - wild.metrics["mae"])
