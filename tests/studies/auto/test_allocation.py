"""The race: who goes on, who is out, and how often it is wrong."""

import numpy as np
import pytest
from scipy import stats

from studies.auto.allocation import Standing, chance, following, hopeless, leader
from tracking.significance import difference

SIZES = np.full(40, 5)


def arm(name, mean, noise=0.0, seed=0, **more):
    draws = np.random.default_rng(seed).normal(mean, noise, len(SIZES)) if noise else np.full(len(SIZES), mean)
    return Standing(name, draws * SIZES, **more)


def test_a_difference_of_equal_questions_is_a_paired_t():
    random = np.random.default_rng(1)
    one, other = random.normal(0.3, 1, 40), random.normal(0, 1, 40)
    mean, error = difference(one * 5, other * 5, SIZES)
    assert mean / error == pytest.approx(stats.ttest_rel(one, other).statistic)


def test_a_difference_is_of_the_users_that_both_are_judged_on():
    one, other = np.array([1.0, 2, np.nan, 4, 3]), np.array([0.0, 2, 1, np.nan, 1])
    mean, error = difference(one, other, np.array([1, 2, 3, 4, 5]))
    assert mean == pytest.approx((1 + 0 + 2) / (1 + 2 + 5))
    assert difference(one, np.full(5, np.nan), SIZES[:5])[1] == float("inf")
    assert np.isfinite(error)


def test_the_leader_is_who_is_ahead_and_of_equals_the_first():
    arms = [arm("a", 0.1), arm("b", 0.2), arm("c", 0.2)]
    assert leader(arms, SIZES).name == "b"


def test_who_cannot_win_any_more_is_out_unless_the_last_slice_brought_enough():
    best, behind = arm("best", 0.5, 0.1, 1), arm("behind", 0.3, 0.1, 2)
    assert hopeless(behind, best, SIZES)
    assert not hopeless(arm("behind", 0.3, 0.1, 2, lift=0.2), best, SIZES)
    assert not hopeless(best, best, SIZES)
    assert not hopeless(arm("noisy", 0.45, 0.4, 3), best, SIZES)


def test_leader_and_likeliest_rival_share_the_time():
    best = arm("best", 0.5, 0.3, 1, seconds=10)
    near, far = arm("near", 0.45, 0.3, 2, seconds=4), arm("far", 0.36, 0.3, 3, seconds=0)
    assert chance(near, best, SIZES) > chance(far, best, SIZES)
    assert following([best, near, far], SIZES).name == "near"
    assert following([best, arm("near", 0.45, 0.3, 2, seconds=20), far], SIZES).name == "best"
    assert following([arm("best", 0.5, 0.3, 1, done=True), arm("near", 0.45, 0.3, 2, seconds=20)], SIZES).name == "near"


def test_the_race_is_over_when_nothing_is_left_to_try():
    assert following([], SIZES) is None
    assert following([arm("best", 0.5, done=True), arm("beaten", 0.1)], SIZES) is None
    assert following([arm("best", 0.5, done=True), arm("twin", 0.5, done=True)], SIZES) is None
