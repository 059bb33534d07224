"""An interval that holds at every look, in terms of users."""

import math

import numpy as np
import pytest

from tracking.sequence import Interval, Tiers, paired, radius, rho_of, unpaired, verdict

USERS = [f"u{number}" for number in range(200)]


def tiers_of(users, values):
    """Values [n] in the order in which they came."""
    tiers = Tiers()
    for user, value in zip(users, values, strict=True):
        tiers.add(user, float(value))
    return tiers


def test_the_formula_is_that_of_the_paper():
    """Howard et al. 2021, eq. 14, for the sum of t values with variance s^2 at two-sided level alpha."""
    t, s, alpha = 250, 0.3, 0.05
    rho = rho_of(alpha)
    intrinsic = t * s**2
    boundary = math.sqrt((intrinsic + rho * s**2) * math.log((intrinsic + rho * s**2) / (rho * s**2 * alpha**2)))
    assert radius(s, t, alpha) == pytest.approx(boundary / t)
    widths = {users: radius(1, users, alpha) * math.sqrt(users) for users in (20, 50, 100, 200, 1000)}
    assert min(widths, key=widths.get) == 100
    assert radius(1, 19, alpha) == math.inf


def test_a_user_counts_once_in_a_tier_however_many_labels_come():
    one = tiers_of(USERS * 3, np.tile(np.linspace(-1, 1, 200), 3))
    assert [one.tier(tier, 0.05)[2] for tier in range(3)] == [200, 200, 0]
    loud = Tiers()
    for _ in range(10_000):
        loud.add("u", 1.0)
    assert paired(loud).low == -math.inf


def test_a_difference_is_found_and_more_labels_help():
    rng = np.random.default_rng(0)
    values = rng.choice([-1, 0, 1], size=(16, 200), p=[0.1, 0.7, 0.2])
    few, many = (paired(tiers_of(USERS * n, values[:n].ravel())) for n in (1, 16))
    assert many.high - many.low < 0.7 * (few.high - few.low)
    assert many.low > 0
    assert many.labels == 16
    assert abs(many.mean - 0.1) < 0.03


def test_no_alarm_where_there_is_no_difference():
    """200 looks in each of 100 worlds: at most 5 % of the worlds raise an alarm, where a repeated z-test does often."""
    alarms = naive = 0
    for world in range(100):
        rng = np.random.default_rng([1, world])
        values = rng.choice([-1, 1], size=400)
        users = rng.integers(0, 200, 400)
        tiers, found, test = Tiers(), False, False
        for number, (user, value) in enumerate(zip(users, values, strict=True), 1):
            tiers.add(str(user), float(value))
            if number % 2 == 0 and number >= 20:
                now = paired(tiers)
                found |= now.low > 0 or now.high < 0
                test |= abs(values[:number].mean()) * math.sqrt(number) / values[:number].std() > 1.96
        alarms, naive = alarms + found, naive + test
    assert alarms <= 5
    assert naive > 20


def test_two_groups_of_users():
    rng = np.random.default_rng(0)
    good, bad = (
        tiers_of(USERS * 8, (rng.random(1600) < share).astype(float)) for share in (0.7, 0.4)
    )  # fmt: skip
    assert unpaired(good, bad).low > 0
    same = unpaired(good, good)
    assert same.low < 0 < same.high


def test_the_mean_is_of_all_that_came_and_lies_in_its_interval():
    """What users say first is 0.6, what they say later is less: the first labels alone are no estimate."""
    assert paired(tiers_of(["a", "a", "a", "b"], [1, -1, 0, 1])).mean == pytest.approx((0 + 1) / 2)
    nobody, seen = tiers_of(USERS, np.zeros(200)), []
    for right in range(100, 150, 5):
        rest = np.where(np.arange(200) < right, 1.0, -1.0)
        tiers = tiers_of(USERS * 16, np.concatenate([np.repeat([1.0, -1.0], [160, 40]), np.tile(rest, 15)]))
        found, apart = paired(tiers), unpaired(tiers, nobody)
        assert tiers.mean == pytest.approx((0.6 + 15 * rest.mean()) / 16)
        for one in (found, apart):
            inside = one.low <= one.high
            assert one.mean == pytest.approx(np.clip(tiers.mean, one.low, one.high) if inside else tiers.mean)
        seen.append((found.low > found.high, bool(found.mean > tiers.mean)))
    assert set(seen) == {(True, False), (False, True), (False, False)}


@pytest.mark.parametrize(
    ("low", "high", "users", "said"),
    [
        (0.01, 0.1, 50, "better"),
        (-0.1, -0.01, 50, "worse"),
        (-0.01, 0.015, 50, "equal"),
        (-0.01, 0.05, 50, "go on"),
        (-0.01, 0.05, 100, "inconclusive"),
        (0.02, -0.02, 50, "inconclusive"),
        (-math.inf, math.inf, 3, "go on"),
    ],
)
def test_the_verdict(low, high, users, said):
    assert verdict(Interval(0.0, low, high, users, 1), 0.02, 100) == said
