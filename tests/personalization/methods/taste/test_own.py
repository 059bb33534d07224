import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import norm

from personalization.methods.taste import own
from personalization.methods.taste.calibration import PriorTables, calibrate
from personalization.methods.taste.own import Between, Items, between, deviations, following, helped, with_own

STRENGTHS = {"beta": 0.0, "gamma": 0.8, "kappa": 2.0, "tau": 1.0, "prior_mode": "user", "source": "batch"}
GRID = own.GRIDS["gamma"]


def world(spread: float, users: int = 150, each: int = 12, k: int = 5):
    """Users whose labels follow what was known of them by a gamma of each, about .8."""
    rng = np.random.default_rng(3)
    gammas = 0.8 + spread * rng.normal(size=users)
    probs = np.full(k, 1 / k)
    tables = PriorTables({"batch": np.zeros(k)}, probs, np.full(k, 100))
    owners = np.repeat(np.arange(users), each)
    scores = rng.normal(size=(len(owners), k)).astype(np.float32)
    counts = rng.integers(0, 8, (len(owners), k))
    found = calibrate(scores, counts, tables, **{**STRENGTHS, "gamma": gammas[owners][:, None]}).log_probs
    gold = np.array([rng.choice(k, p=p) for p in np.exp(found)])
    return gammas, Items(scores, counts, gold, owners), tables


def test_a_strength_for_each_question_is_that_of_one_after_the_other():
    _, items, tables = world(0.5, 4)
    given = {"gamma": np.array([0.1, 0.9]), "kappa": np.array([1.0, 5.0]), "tau": np.array([0.5, 2.0])}
    both = calibrate(
        items.scores[:2], items.counts[:2], tables, **{**STRENGTHS, **{n: v[:, None] for n, v in given.items()}}
    )
    for row in range(2):
        one = {**STRENGTHS, **{name: float(value[row]) for name, value in given.items()}}
        alone = calibrate(items.scores[row : row + 1], items.counts[row : row + 1], tables, **one)
        assert np.allclose(both.log_probs[row], alone.log_probs[0])


def test_likelihoods_are_those_of_one_item_after_the_other():
    _, items, tables = world(0.5, 3, 4)
    table = own.likelihoods(items, tables, STRENGTHS, "kappa", 4)
    for column in (0, 13, 30):
        moved = {**STRENGTHS, "kappa": 2.0 * np.exp(own.GRIDS["kappa"][column])}
        slow = np.zeros(4)
        for row, user in enumerate(items.owners):
            one = calibrate(items.scores[row : row + 1], items.counts[row : row + 1], tables, **moved)
            slow[user] += one.log_probs[0, items.gold[row]]
        assert np.allclose(table[:, column], slow)
    assert (table[3] == 0).all()


def test_with_a_normal_likelihood_the_shrinkage_is_efron_and_morris():
    means, variance, about = np.array([-0.3, 0.0, 0.45]), 0.04, Between("gamma", 0.05, 0.2)
    table = -((GRID - means[:, None]) ** 2) / (2 * variance)
    expected = (means - 0.05) * 0.2**2 / (0.2**2 + variance)
    assert np.allclose(deviations(table, about), expected, atol=2e-3)


def test_the_grid_is_the_integral():
    rows = np.random.default_rng(0).normal(size=3)

    def likelihood(t):
        return float(np.exp(-np.log1p(np.exp(-2 * (rows * t + 0.3))).sum()))

    table = np.array([[np.log(likelihood(t)) for t in GRID]])
    low, high = GRID[0], GRID[-1]
    top, under, prior = (
        quad(lambda t, m=moment, f=some: t**m * f(t) * norm.pdf(t, 0.1, 0.3), low, high)[0]
        for moment, some in ((1, likelihood), (0, likelihood), (1, lambda _: 1.0))
    )
    mass = quad(lambda t: norm.pdf(t, 0.1, 0.3), low, high)[0]
    assert deviations(table, Between("gamma", 0.1, 0.3))[0] == pytest.approx(top / under - prior / mass, abs=2e-3)


def test_how_users_differ_is_found_and_nobody_known_keeps_the_common_strength():
    gammas, items, tables = world(0.6)
    users = len(gammas) + 1
    found = following(items, tables, STRENGTHS, (), "gamma", users)
    assert found.spread == pytest.approx(0.6, abs=0.21)
    strengths = with_own(items, tables, STRENGTHS, (found,), users)["gamma"][:, 0]
    assert strengths[-1] == pytest.approx(0.8)
    before, after = np.abs(0.8 - gammas).mean(), np.abs(strengths[:-1] - gammas).mean()
    assert after < 0.8 * before


def test_alike_users_keep_the_common_strength():
    gammas, items, tables = world(0.0, 800)
    found = following(items, tables, STRENGTHS, (), "gamma", len(gammas))
    strengths = with_own(items, tables, STRENGTHS, (found,), len(gammas))["gamma"]
    assert found.spread <= 0.1
    assert np.abs(strengths - 0.8).mean() < 0.05


def test_without_a_spread_every_user_has_exactly_the_common_strength():
    _, items, tables = world(0.6, 10)
    strengths = with_own(items, tables, STRENGTHS, (Between("tau", float(own.GRIDS["tau"][4]), 0.0),), 10)["tau"]
    assert np.allclose(strengths, STRENGTHS["tau"], rtol=1e-12)


def test_of_equally_likely_spreads_the_smaller():
    assert between(np.zeros((5, len(GRID))), "gamma").spread == 0


def test_what_helps_is_judged_by_user():
    users = ["a"] * 3 + ["b"] * 2 + ["c"]
    lifted = np.array([0.3, 0.1, 0.2, -0.1, 0.1, 0.4])
    gain, error = helped(lifted, users)
    sums, sizes = np.array([0.6, 0.0, 0.4]), np.array([3, 2, 1])
    assert gain == pytest.approx(1 / 6)
    assert error == pytest.approx(np.sqrt(1.5 * ((sums - gain * sizes) ** 2).sum()) / 6)
    assert Between("gamma", 0.0, 0.3, gain, error).used == (gain > error)
    assert not Between("gamma", 0.0, 0.3, 0.01, 0.01).used
