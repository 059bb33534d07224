"""Exact solvers of the calibration: yardsticks for a sampler, and points to start from.

Accuracy along a line in parameter space is piecewise constant (each question is
right on the intervals where its gold label tops the upper envelope of K lines; Och 2003), so `line_optimum` finds the
constrained optimum by a sweep in O(nK log nK). NLL in (1/tau, beta/tau, gamma/tau) is a conditional logit and convex,
so `fit_nll` finds its optimum by Newton steps.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from personalization.methods.taste.priors import log_softmax

Floats = NDArray[np.floating]
Ints = NDArray[np.int64]


RANGES = {"beta": (0.0, 2.0), "gamma": (-0.5, 2.0)}
"""Strengths that are looked at."""


class LineOptimum(NamedTuple):
    """The best interval of a line search: its ends, a point inside it, and the accuracy there."""

    low: float
    high: float
    point: float
    accuracy: float


def line_optimum(
    base: Floats,
    slope: Floats,
    gold: Ints,
    bounds: tuple[float, float],
    min_entropy: float = 0.0,
    max_top1_share: float = 1.0,
) -> LineOptimum | None:
    """Exact constrained maximum of accuracy of argmax(base + g * slope) over g in bounds.

    `base`, `slope`: float [n, K]. Of equally accurate intervals the widest is returned; None when no g is feasible.
    """
    n, k = base.shape
    cuts, before, after = _label_changes(base, slope, bounds[0], bounds[1])
    start = _labels_at(base, slope, bounds[0])
    counts = np.bincount(start, minlength=k).astype(np.int64)
    delta = np.zeros((len(cuts) + 1, k), dtype=np.int64)
    delta[0] = counts
    rows = np.arange(1, len(cuts) + 1)
    np.add.at(delta, (rows, before[:, 1]), -1)
    np.add.at(delta, (rows, after), 1)
    tables = delta.cumsum(axis=0)
    owner = gold[before[:, 0]] if len(cuts) else np.empty(0, np.int64)
    gained = (after == owner).astype(np.int64) - (before[:, 1] == owner).astype(np.int64)
    hits = np.concatenate([[int((start == gold).sum())], gained]).cumsum()
    edges = np.concatenate([[bounds[0]], cuts, [bounds[1]]])
    widths = np.diff(edges)
    shares = tables / n
    with np.errstate(divide="ignore", invalid="ignore"):
        bits = -np.where(shares > 0, shares * np.log2(shares), 0.0).sum(axis=1)
    feasible = (widths > 1e-9) & (bits >= min_entropy) & (shares.max(axis=1) <= max_top1_share)
    if not feasible.any():
        return None
    best = np.flatnonzero(feasible & (hits == hits[feasible].max()))
    choice = int(best[widths[best].argmax()])
    low, high = float(edges[choice]), float(edges[choice + 1])
    return LineOptimum(low, high, (low + high) / 2, float(hits[choice] / n))


class PlaneOptimum(NamedTuple):
    """Strengths that no line through them along beta or gamma does better than, and the accuracy there."""

    beta: float
    gamma: float
    accuracy: float


def plane_optimum(
    scores: Floats, log_model: Floats, log_pi: Floats, gold: Ints, start: tuple[float, float], turns: int = 3
) -> PlaneOptimum:
    """Accuracy of argmax(scores - beta * log_model + gamma * log_pi), raised by exact line searches along gamma and
    beta by turns; a local optimum. `start`: beta, gamma. Shapes as of `fit_nll`; O(turns n K log nK)."""
    beta, gamma = start
    slope = np.broadcast_to(-log_model, scores.shape)
    accuracy = 0.0
    for _ in range(turns):
        for along in ("gamma", "beta"):
            base = scores - beta * log_model if along == "gamma" else scores + gamma * log_pi
            found = line_optimum(base, log_pi if along == "gamma" else slope, gold, RANGES[along])
            assert found is not None  # nothing bounds it
            accuracy = found.accuracy
            beta, gamma = (beta, found.point) if along == "gamma" else (found.point, gamma)
    return PlaneOptimum(beta, gamma, accuracy)


def _labels_at(base: Floats, slope: Floats, g: float) -> NDArray[np.intp]:
    """argmax(base + g' * slope) for g' just above g: of equals the steepest."""
    z = base + g * slope
    top = z >= z.max(axis=1, keepdims=True) - 1e-12
    return np.asarray(np.where(top, slope, -np.inf).argmax(axis=1))


def _label_changes(base: Floats, slope: Floats, low: float, high: float) -> tuple[Floats, Ints, Ints]:
    """Where the prediction of any question changes on (low, high), in order.

    Returns the cuts [m], (question, label before) [m, 2] and the label after [m].
    """
    active = np.arange(len(base))
    current = _labels_at(base, slope, low)
    at = np.full(len(base), low)
    found: list[tuple[Floats, Floats, Ints, Ints]] = []
    while len(active):
        rise = slope[active] - slope[active, current][:, None]
        gap = base[active, current][:, None] - base[active]
        with np.errstate(divide="ignore", invalid="ignore"):
            meets = np.where(rise > 1e-12, gap / rise, np.inf)
        meets = np.maximum(meets, at[:, None])
        meets[rise <= 1e-12] = np.inf
        cut = meets.min(axis=1)
        moved = cut < high
        tied = meets <= cut[:, None] + 1e-12
        following = np.where(tied, slope[active], -np.inf).argmax(axis=1)
        found.append((cut[moved], active[moved], current[moved], following[moved]))
        active, current, at = active[moved], following[moved], cut[moved]
    cuts, rows, before, after = (np.concatenate(parts) for parts in zip(*found, strict=True))
    order = np.argsort(cuts, kind="stable")
    return cuts[order], np.stack([rows, before], axis=1)[order], after[order]


def fit_temperature(log_probs: Floats, gold: Ints) -> float:
    """The factor on the temperature that minimises NLL (Guo et al. 2017), within [1/20, 20]."""
    from scipy.optimize import minimize_scalar

    rows = np.arange(len(gold))

    def loss(log_factor: float) -> float:
        return -float(log_softmax(log_probs / np.exp(log_factor))[rows, gold].mean())

    return float(np.exp(minimize_scalar(loss, bounds=(-3.0, 3.0), method="bounded").x))


class NllFit(NamedTuple):
    """The optimum of the convex fit."""

    tau: float
    beta: float
    gamma: float
    nll: float


def fit_nll(scores: Floats, log_model: Floats, log_pi: Floats, gold: Ints) -> NllFit:
    """Minimise the NLL of softmax((scores - beta * log_model + gamma * log_pi) / tau) over all three.

    In w = (1/tau, -beta/tau, gamma/tau) the model is a conditional logit: convex, solved by Newton with a trust region.
    `scores`, `log_pi`: [n, K]; `log_model`: [K] or [n, K]. Raises ValueError when the best 1/tau is not positive.
    """
    from scipy.optimize import minimize

    n = len(scores)
    features = np.stack([scores, np.broadcast_to(log_model, scores.shape), log_pi], axis=-1).astype(np.float64)
    features = features - features.mean(axis=1, keepdims=True)
    at_gold = features[np.arange(n), gold]

    def loss(w: Floats) -> tuple[float, Floats]:
        log_probs = log_softmax(features @ w)
        expected = np.einsum("nk,nkf->nf", np.exp(log_probs), features)
        value = -log_probs[np.arange(n), gold].mean() + 1e-9 * (w @ w)
        return float(value), (expected - at_gold).mean(axis=0) + 2e-9 * w

    def curvature(w: Floats) -> Floats:
        probs = np.exp(log_softmax(features @ w))
        expected = np.einsum("nk,nkf->nf", probs, features)
        second = np.einsum("nk,nkf,nkg->fg", probs, features, features) / n
        return np.asarray(second - expected.T @ expected / n + 2e-9 * np.eye(3))

    fit = minimize(loss, np.array([1.0, 0.0, 0.0]), jac=True, hess=curvature, method="trust-exact")
    inverse_tau, minus_beta, gamma = fit.x
    if inverse_tau <= 0:
        raise ValueError(f"the scores speak against the gold labels: the best 1/tau is {inverse_tau:.3g}")
    return NllFit(1 / inverse_tau, -minus_beta / inverse_tau, gamma / inverse_tau, float(fit.fun))
