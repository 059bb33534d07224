import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.stats import entropy as scipy_entropy

from personalization.methods.taste.calibration import PriorTables, calibrate, report_calibrate
from personalization.methods.taste.priors import log_mean_probability, log_softmax, taste
from personalization.methods.taste.solvers import RANGES, fit_nll, fit_temperature, line_optimum, plane_optimum
from personalization.metrics import entropy_bits
from search_spaces import calibration as space


def problem(seed: int, n: int = 40, k: int = 4):
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=(n, k)).astype(np.float32) * 2
    counts = rng.integers(0, 6, (n, k))
    gold = rng.integers(0, k, n)
    probs = rng.dirichlet(np.ones(k))
    tables = PriorTables({"batch": log_mean_probability(scores)}, probs, counts.sum(axis=0))
    return scores, counts, gold, tables


def test_baseline_parameters_change_nothing():
    scores, counts, _, tables = problem(0)
    names = ("beta", "gamma", "kappa", "tau", "prior_mode", "source")
    log_probs, modes = calibrate(scores, counts, tables, **{name: getattr(space.BASELINE, name) for name in names})
    assert np.allclose(log_probs, log_softmax(scores))
    assert set(modes) == {"uniform"}


def test_formula_by_hand():
    scores, counts, _, tables = problem(1)
    params = {"beta": 0.7, "gamma": -0.4, "kappa": 3.0, "tau": 1.7, "prior_mode": "user", "source": "batch"}
    log_probs, _ = calibrate(scores, counts, tables, **params)
    row = 5
    pi = (counts[row] + 3.0 * tables.global_probs) / (counts[row].sum() + 3.0)
    z = (scores[row] - 0.7 * tables.log_model["batch"] - 0.4 * np.log(pi)) / 1.7
    assert np.allclose(log_probs[row], z - np.log(np.exp(z).sum()))


def test_weights_of_similar_items_take_the_place_of_counts():
    scores, counts, _, tables = problem(7)
    counts[3] = 0
    rest = {"beta": 0.5, "gamma": 1.2, "kappa": 2.0, "tau": 1.0, "source": "batch"}
    weighted = counts * 0.4
    log_probs, modes = calibrate(scores, weighted, tables, prior_mode="similar", **rest)
    pi = (weighted[5] + 2.0 * tables.global_probs) / (weighted[5].sum() + 2.0)
    z = scores[5] - 0.5 * tables.log_model["batch"] + 1.2 * np.log(pi)
    assert np.allclose(log_probs[5], z - np.log(np.exp(z).sum()))
    assert (modes[3], modes[5]) == ("global (fall-back)", "similar")
    assert (calibrate(scores, weighted, tables, prior_mode="user", **rest).log_probs == log_probs).all()


def test_tau_never_moves_a_label():
    scores, counts, _, tables = problem(2)
    rest = {"beta": 1.0, "gamma": 0.5, "kappa": 5.0, "prior_mode": "user", "source": "batch"}
    labels = [calibrate(scores, counts, tables, tau=tau, **rest).log_probs.argmax(axis=1) for tau in (0.3, 1, 4)]
    assert (labels[0] == labels[1]).all()
    assert (labels[1] == labels[2]).all()


def test_fall_backs_are_said():
    counts = np.array([[0, 0], [1, 2]])
    probs = np.array([0.3, 0.7])
    log_pi, modes = taste(counts, probs, "user", 2.0)
    assert modes == ["global (fall-back)", "user"]
    assert np.allclose(np.exp(log_pi[0]), probs)
    assert taste(counts, None, "user", 2.0)[1] == ["uniform (fall-back)"] * 2
    with pytest.raises(ValueError, match="prior mode"):
        taste(counts, probs, "usr", 2.0)


def test_the_reports_formula_subtracts_the_users_own_taste():
    scores, counts, _, tables = problem(3)
    counts[0] = 0
    log_probs, modes = report_calibrate(scores, counts, tables, beta=1.5, tau=3.0, alpha=1.0, prior_mode="user")
    own = (counts[4] + 1.0) / (counts[4].sum() + 4)
    z = (scores[4] - 1.5 * np.log(own)) / 3.0
    assert np.allclose(log_probs[4], z - np.log(np.exp(z).sum()))
    assert modes[0] == "global (fall-back)"


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.floats(0, 1.5), st.floats(0.3, 1))
def test_line_optimum_equals_a_fine_grid(seed, min_entropy, max_top1):
    rng = np.random.default_rng(seed)
    n, k = 25, 4
    base, slope, gold = rng.normal(size=(n, k)), rng.normal(size=(n, k)), rng.integers(0, k, n)
    found = line_optimum(base, slope, gold, (-1.0, 2.0), min_entropy, max_top1)
    grid = (base + np.linspace(-1, 2, 3001)[:, None, None] * slope).argmax(axis=2)
    shares = (grid[:, :, None] == np.arange(k)).mean(axis=1)
    allowed = (scipy_entropy(shares, base=2, axis=1) >= min_entropy) & (shares.max(axis=1) <= max_top1)
    best = (grid == gold).mean(axis=1)[allowed].max(initial=-1.0)
    if found is None:
        assert best == -1.0
        return
    predicted = (base + found.point * slope).argmax(axis=1)
    counts = np.bincount(predicted, minlength=k)
    assert (predicted == gold).mean() == found.accuracy
    assert entropy_bits(counts) >= min_entropy
    assert counts.max() / n <= max_top1
    assert found.accuracy >= best


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6))
def test_no_line_through_a_plane_optimum_does_better_and_none_is_worse_than_its_start(seed):
    rng = np.random.default_rng(seed)
    n, k = 25, 4
    scores, log_pi, gold = rng.normal(size=(n, k)), rng.normal(size=(n, k)), rng.integers(0, k, n)
    log_model, start = rng.normal(size=k), (float(rng.uniform(0, 2)), float(rng.uniform(-0.5, 2)))

    def accuracy(beta, gamma):
        return ((scores - beta * log_model + gamma * log_pi).argmax(axis=1) == gold).mean()

    found = plane_optimum(scores, log_model, log_pi, gold, start, turns=25)
    assert accuracy(found.beta, found.gamma) == found.accuracy >= accuracy(*start)
    assert max(accuracy(found.beta, gamma) for gamma in np.linspace(*RANGES["gamma"], 501)) <= found.accuracy
    assert max(accuracy(beta, found.gamma) for beta in np.linspace(*RANGES["beta"], 501)) <= found.accuracy


def test_convex_fit_equals_a_general_optimiser():
    scores, counts, gold, tables = problem(4, n=200)
    scores[np.arange(200), gold] += 1.5
    log_pi, _ = taste(counts, tables.global_probs, "user", 5.0)
    fit = fit_nll(scores, tables.log_model["batch"], log_pi, gold)

    def loss(x):
        z = (scores - x[1] * tables.log_model["batch"] + x[2] * log_pi) / np.exp(x[0])
        return -log_softmax(z)[np.arange(200), gold].mean()

    general = minimize(
        loss, np.zeros(3), method="Nelder-Mead", options={"xatol": 1e-8, "fatol": 1e-10, "maxiter": 4000}
    )
    assert fit.nll == pytest.approx(general.fun, abs=1e-6)
    assert [np.log(fit.tau), fit.beta, fit.gamma] == pytest.approx(general.x, abs=2e-3)


def test_scores_that_speak_against_the_labels_are_an_error():
    scores, counts, gold, tables = problem(5, n=200)
    scores[np.arange(200), gold] -= 3.0
    log_pi, _ = taste(counts, tables.global_probs, "user", 5.0)
    with pytest.raises(ValueError, match="speak against"):
        fit_nll(scores, tables.log_model["batch"], log_pi, gold)


def test_fitted_temperature_is_a_minimum():
    scores, _, gold, _ = problem(6, n=300)
    scores[np.arange(300), gold] += 1.0
    log_probs = log_softmax(scores * 3)
    best = fit_temperature(log_probs, gold)

    def loss(factor):
        return -log_softmax(log_probs / factor)[np.arange(300), gold].mean()

    assert loss(best) <= min(loss(best * 1.05), loss(best / 1.05))
    assert best > 1


def test_a_label_of_which_no_question_thinks_has_a_finite_bias():
    bias = log_mean_probability(np.array([[0.0, -900.0], [0.0, -1000.0]], dtype=np.float32))
    assert bias == pytest.approx([0.0, -900 - np.log(2)])
