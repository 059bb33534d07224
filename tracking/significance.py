"""Is the difference real? Paired tests of two systems on the same questions, by user.

The verdict is the user-level sign-flip test: under the null hypothesis a user's net gain s_u = helped_u - hurt_u is as
likely as -s_u, and p is the share of sign patterns whose |sum| reaches the observed one. It keeps its level when users
have several correlated questions, where McNemar's test does not; that is shown beside it, exact and mid-p (Fagerland
et al. 2013). The interval is BCa over users of sum s_u / sum n_u. Cost: 9,999 sign patterns and as many resamples.

The smallest detectable difference solves Connor's 1987 sample-size formula for the paired difference.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, stats

from personalization.evaluation import MEANS, Evaluation, changes

RESAMPLES = 9999
BATCH_ELEMENTS = 4_000_000
"""How many resampled values are in memory at once."""


class McNemar(NamedTuple):
    """b: old right, new wrong; c: old wrong, new right."""

    b: int
    c: int
    p_exact: float
    p_mid: float


def mcnemar(b: int, c: int) -> McNemar:
    """Exact and mid-p McNemar test of discordant counts."""
    if b + c == 0:
        return McNemar(0, 0, 1.0, 1.0)
    exact = float(stats.binomtest(min(b, c), b + c, 0.5).pvalue)
    at = float(stats.binom.pmf(min(b, c), b + c, 0.5))
    mid = 1 - at / 2 if b == c else float(2 * stats.binom.cdf(min(b, c), b + c, 0.5)) - at
    return McNemar(b, c, exact, mid)


def sign_flip(user_gains: NDArray[np.number[Any]]) -> float:
    """Two-sided p-value of the sum of the users' net gains, float [U]; exact where few users differ."""
    gains = user_gains[user_gains != 0].astype(np.float64)
    if not len(gains):
        return 1.0
    if len(gains) == 1:
        return 1.0
    result = stats.permutation_test(
        (gains, np.zeros_like(gains)),
        lambda x, y, axis: (x - y).sum(axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=RESAMPLES,
        batch=max(1, BATCH_ELEMENTS // len(gains)),
        rng=np.random.default_rng(0),
    )
    return float(result.pvalue)


def user_interval(
    user_gains: NDArray[np.number[Any]], user_sizes: NDArray[np.number[Any]], level: float = 0.95
) -> tuple[float, float]:
    """BCa interval over users of the item-weighted mean gain; its two ends are equal when no user differs."""
    if len(user_gains) < 2 or np.ptp(user_gains / user_sizes) == 0:
        mean = float(user_gains.sum() / user_sizes.sum())
        return mean, mean
    result = stats.bootstrap(
        (user_gains.astype(np.float64), user_sizes.astype(np.float64)),
        lambda s, n, axis: s.sum(axis=axis) / n.sum(axis=axis),
        paired=True,
        vectorized=True,
        confidence_level=level,
        n_resamples=RESAMPLES,
        batch=max(1, BATCH_ELEMENTS // len(user_gains)),
        method="BCa",
        rng=np.random.default_rng(0),
    )
    return float(result.confidence_interval.low), float(result.confidence_interval.high)


def user_totals(evaluation: Evaluation, values: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Sum of a per-question value by user, and the number of questions by user; both [U]."""
    users, rows = evaluation.users
    sums = np.bincount(rows, weights=values.astype(np.float64), minlength=len(users))
    return sums, np.bincount(rows, minlength=len(users))


def significance(baseline: Evaluation, candidate: Evaluation, metric: str = "accuracy") -> dict[str, Any]:
    """Everything that a promotion is judged by, JSON-able.

    `p_value` and `delta` are of the metric: one of `MEANS`, with the sign turned where less is better, else accuracy.
    `ci95` and `p_accuracy` are of accuracy.
    """
    changed = changes(baseline, candidate)
    gain = candidate.correct.astype(np.int64) - baseline.correct.astype(np.int64)
    gains, sizes = user_totals(candidate, gain)
    test = mcnemar(int(changed["hurt"]), int(changed["helped"]))
    low, high = user_interval(gains, sizes)
    differences = candidate.question_scores(metric) - baseline.question_scores(metric)
    return {
        "n": len(gain),
        "users": len(sizes),
        "baseline_accuracy": baseline.metrics["accuracy"],
        "accuracy": candidate.metrics["accuracy"],
        "delta_accuracy": changed["accuracy_gain"],
        "delta_accuracy_user_mean": float((gains / sizes).mean()),
        "ci95": [low, high],
        "metric": metric if metric in MEANS else "accuracy",
        "delta": float(differences.mean()),
        "p_value": sign_flip(user_totals(candidate, differences)[0]),
        "p_accuracy": sign_flip(gains),
        "test": "user-level sign flip, two-sided",
        "mcnemar": test._asdict(),
        "changed_rate": changed["changed_rate"],
        "helped": int(changed["helped"]),
        "hurt": int(changed["hurt"]),
        "prior_modes": candidate.mode_counts(),
    }


def paired(before: NDArray[np.bool_], candidate: Evaluation) -> dict[str, Any]:
    """The candidate's gain in accuracy over answers that were right so, bool [n], on the same questions."""
    gains, sizes = user_totals(candidate, candidate.correct.astype(np.int64) - before.astype(np.int64))
    low, high = user_interval(gains, sizes)
    return {"delta": float(gains.sum() / sizes.sum()), "ci95": [low, high], "p_value": sign_flip(gains)}


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for their number (Holm 1979): no share of false claims above the level in any of them."""
    order = np.argsort(p_values, kind="stable")
    raised = np.maximum.accumulate([(len(order) - rank) * p_values[i] for rank, i in enumerate(order)])
    corrected = np.empty(len(order))
    corrected[order] = np.minimum(raised, 1.0)
    return [float(p) for p in corrected]


def detectable_difference(n: int, discordance: float = 0.2, alpha: float = 0.05, power: float = 0.8) -> float | None:
    """Smallest paired difference found with this power; None where even the largest possible one is not."""
    z_alpha, z_power = stats.norm.ppf(1 - alpha / 2), stats.norm.ppf(power)

    def excess(difference: float) -> float:
        spread = z_alpha * discordance**0.5 + z_power * (discordance - difference**2) ** 0.5
        return float(spread**2 / difference**2 - n)

    largest = min(discordance, discordance**0.5)
    if excess(largest) > 0:
        return None
    return float(optimize.brentq(excess, 1e-6, largest))
