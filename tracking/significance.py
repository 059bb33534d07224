"""Is the difference real? Paired tests of two systems on the same questions, by user.

A metric that is a mean over questions is tested by the user-level sign flip: under the null hypothesis a user's net
gain s_u is as likely as -s_u, and p is the share of sign patterns whose |sum| reaches the observed one. Any other
metric (macro-F1, calibration error, RMSE, ...) is tested by exchanging the two systems' answers user by user and
computing the metric anew: the same null hypothesis, for a statistic that is no sum. Both keep their level when users
have several correlated questions, where McNemar's test does not; that is shown beside, exact and mid-p (Fagerland et
al. 2013).

Intervals are BCa over users. Every difference is in the metric's own units, and positive where the candidate is better.
Cost: 9,999 patterns, or 40 over the level where that is more, and 9,999 resamples; for a metric that is no mean each is
one computation of it.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import scipy
from numpy.typing import NDArray

from personalization.errors import ChamtuneError
from personalization.evaluation import MEANS, Evaluation, changes
from personalization.metrics import METRICS, ORDERED

Floats = NDArray[np.float64]

RESAMPLES = 9999
DRAWS_AT_LEVEL = 40
"""Patterns that are drawn for each one that may reach the observed difference at the level of the test."""
FEWEST_USERS = 3
"""Users without whom a difference has no standard error."""
BATCH_ELEMENTS = 1_000_000
"""How many resampled values are in memory at once, in five arrays."""


def draws_for(level: float) -> int:
    """How many patterns give p the resolution that a test at this level needs."""
    return max(RESAMPLES, math.ceil(DRAWS_AT_LEVEL / level))


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
    exact = float(scipy.stats.binomtest(min(b, c), b + c, 0.5).pvalue)
    at = float(scipy.stats.binom.pmf(min(b, c), b + c, 0.5))
    mid = 1 - at / 2 if b == c else float(2 * scipy.stats.binom.cdf(min(b, c), b + c, 0.5)) - at
    return McNemar(b, c, exact, mid)


def sign_flip(user_gains: NDArray[np.number[Any]], draws: int = RESAMPLES) -> float:
    """Two-sided p-value of the sum of the users' net gains, float [U]; exact where few users differ."""
    gains = user_gains[user_gains != 0].astype(np.float64)
    if len(gains) < 2:
        return 1.0
    pairs, batch = (gains, np.zeros_like(gains)), max(1, BATCH_ELEMENTS // len(gains))
    return _permuted(pairs, lambda x, y, axis: (x - y).sum(axis=axis), draws, vectorized=True, batch=batch)


def _permuted(pairs: tuple[NDArray[Any], NDArray[Any]], statistic: Callable[..., Any], draws: int, **how: Any) -> float:
    """Two-sided p-value of a statistic of pairs [U] when the values of a pair change places; exact for few pairs."""
    rng = np.random.default_rng(0)
    result = scipy.stats.permutation_test(
        pairs, statistic, permutation_type="samples", n_resamples=draws, rng=rng, **how
    )
    return float(result.pvalue)


class _Systems:
    """Two systems on the same questions, and how much better the second one is in a metric that is no mean.

    Such metrics read labels and the probability of the top one, and no other column of the table.
    """

    def __init__(self, before: Evaluation, after: Evaluation, metric: str) -> None:
        known = METRICS | ORDERED
        if metric not in known:
            raise ChamtuneError(f"metric {metric!r} cannot be tested; those that can are {', '.join((*MEANS, *known))}")
        self.measure, direction = known[metric]
        self.sign = 1.0 if direction == "maximize" else -1.0
        self.k = len(before.labels)
        self.top = np.stack([e.log_probs.max(axis=1) for e in (before, after)])
        self.predicted = np.stack([before.predicted, after.predicted])
        self.gold, (names, self.owners) = before.gold, before.users
        self.users = len(names)
        self.rows = np.split(np.argsort(self.owners, kind="stable"), np.cumsum(np.bincount(self.owners))[:-1])

    def value(self, system: NDArray[np.int64], rows: NDArray[np.int64]) -> float:
        """The metric of answers that question `rows[i]` gets from system 0 or 1, int [m]."""
        top = np.broadcast_to(self.top[system, rows][:, None], (len(rows), self.k))
        return self.measure(top, self.predicted[system, rows], self.gold[rows])

    def gain_by(self, systems: NDArray[np.int64], users: NDArray[np.int64]) -> float:
        """How much better the systems [U] of these users are than the other ones."""
        rows = np.concatenate([self.rows[user] for user in users])
        chosen = systems[self.owners[rows]]
        return round(self.sign * (self.value(chosen, rows) - self.value(1 - chosen, rows)), 12)

    @property
    def observed(self) -> float:
        """How much better the second system is."""
        return self.gain_by(np.ones(self.users, dtype=np.int64), np.arange(self.users))


def exchange(before: Evaluation, after: Evaluation, metric: str, draws: int = RESAMPLES) -> float:
    """Two-sided p-value of a metric's difference when users' answers of the two systems are exchanged at random.

    Exact where the users are few. ChamtuneError for a metric that cannot be tested.
    """
    systems = _Systems(before, after, metric)
    everybody = np.arange(systems.users)
    if systems.users < 2 or (before.log_probs == after.log_probs).all():
        return 1.0
    pairs = (2 * everybody + 1, 2 * everybody)
    return _permuted(pairs, lambda x, _: systems.gain_by(x % 2, everybody), draws, vectorized=False)


def difference(one: NDArray[np.float64], other: NDArray[np.float64], sizes: NDArray[np.integer]) -> tuple[float, float]:
    """(how much better the one is a question, its standard error), on the users [U] that both are judged on.

    Endless error where these are too few to tell.
    """
    known = ~np.isnan(one + other)
    users, d, n = int(known.sum()), (one - other)[known], sizes[known]
    if not users:
        return 0.0, float("inf")
    mean = float(d.sum() / n.sum())
    if users < FEWEST_USERS:
        return mean, float("inf")
    spread = float(((d - mean * n) ** 2).sum()) * users / (users - 1)
    return mean, math.sqrt(spread) / float(n.sum())


def _bca(data: tuple[NDArray[Any], ...], statistic: Callable[..., Any], **how: Any) -> tuple[float, float]:
    """95 % BCa bootstrap interval of a statistic of users."""
    rng = np.random.default_rng(0)
    found = scipy.stats.bootstrap(data, statistic, n_resamples=RESAMPLES, method="BCa", rng=rng, **how)
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


def user_interval(user_gains: NDArray[np.number[Any]], user_sizes: NDArray[np.number[Any]]) -> tuple[float, float]:
    """95 % BCa interval over users of the item-weighted mean gain; its two ends are equal when no user differs."""
    if len(user_gains) < 2 or np.ptp(user_gains / user_sizes) == 0:
        mean = float(user_gains.sum() / user_sizes.sum())
        return mean, mean
    return _bca(
        (user_gains.astype(np.float64), user_sizes.astype(np.float64)),
        lambda s, n, axis: s.sum(axis=axis) / n.sum(axis=axis),
        paired=True,
        vectorized=True,
        batch=max(1, BATCH_ELEMENTS // len(user_gains)),
    )


def gain_interval(before: Evaluation, after: Evaluation, metric: str) -> tuple[float, float]:
    """95 % BCa interval over users of a gain in a metric; its two ends are equal where no resample differs."""
    if metric in MEANS:
        return user_interval(*gains_by_user(before, after, metric))
    systems = _Systems(before, after, metric)
    observed = systems.observed
    if systems.users < 2 or (before.log_probs == after.log_probs).all():
        return observed, observed
    second = np.ones(systems.users, dtype=np.int64)
    with warnings.catch_warnings(category=scipy.stats.DegenerateDataWarning, action="ignore"):
        found = _bca((np.arange(systems.users),), lambda users: systems.gain_by(second, users), vectorized=False)
    return found if np.isfinite(found).all() else (observed, observed)


def user_totals(evaluation: Evaluation, values: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Sum of a per-question value by user, and the number of questions by user; both [U]."""
    users, rows = evaluation.users
    sums = np.bincount(rows, weights=values.astype(np.float64), minlength=len(users))
    return sums, np.bincount(rows, minlength=len(users))


def gains_by_user(before: Evaluation, after: Evaluation, metric: str = "accuracy") -> tuple[Floats, NDArray[Any]]:
    """How much better the second system is in one of `MEANS`, summed by user, and the questions by user; both [U]."""
    return user_totals(after, after.question_scores(metric) - before.question_scores(metric))


def moved_users(gains: Floats) -> dict[str, int]:
    """How many users gain, lose and do neither."""
    return {
        "users_better": int((gains > 0).sum()),
        "users_worse": int((gains < 0).sum()),
        "users_equal": int((gains == 0).sum()),
    }


def gain(before: Evaluation, after: Evaluation, metric: str) -> float:
    """How much better the second system is, in the metric's own units; ChamtuneError for one that cannot be tested."""
    if metric in MEANS:
        return float((after.question_scores(metric) - before.question_scores(metric)).mean())
    return _Systems(before, after, metric).observed


def paired_test(before: Evaluation, after: Evaluation, metric: str, level: float = 0.05) -> dict[str, Any]:
    """One metric of two systems, JSON-able: before, after, delta (positive: better), interval, p_value, test.

    ChamtuneError for a metric that cannot be tested.
    """
    own = "accuracy" if metric == "accuracy_gain" else metric
    if metric in MEANS:
        p_value = sign_flip(gains_by_user(before, after, metric)[0], draws_for(level))
        name = "user-level sign flip"
    else:
        p_value, name = exchange(before, after, metric, draws_for(level)), "exchange of users' answers"
    return {
        "metric": metric,
        "before": before.metrics[own],
        "after": after.metrics[own],
        "delta": gain(before, after, metric),
        "interval": list(gain_interval(before, after, metric)),
        "p_value": p_value,
        "test": f"{name}, two-sided",
    }


def significance(
    baseline: Evaluation, candidate: Evaluation, metrics: Sequence[str] = ("accuracy",), level: float = 0.05
) -> dict[str, Any]:
    """Everything that a promotion is judged by, JSON-able.

    `tests`: one for each metric, with the resolution that `level` needs. `ci95` and `p_accuracy` are of accuracy.
    """
    changed = changes(baseline, candidate)
    accuracy = paired_test(baseline, candidate, "accuracy", level)
    gains, sizes = gains_by_user(baseline, candidate)
    hurt, helped = (round(changed[name] * len(candidate.gold)) for name in ("hurt", "helped"))
    return {
        "n": len(candidate.gold),
        "users": len(sizes),
        "baseline_accuracy": baseline.metrics["accuracy"],
        "accuracy": candidate.metrics["accuracy"],
        "delta_accuracy": changed["accuracy_gain"],
        "delta_accuracy_user_mean": float((gains / sizes).mean()),
        "ci95": accuracy["interval"],
        "p_accuracy": accuracy["p_value"],
        "tests": {name: paired_test(baseline, candidate, name, level) for name in metrics},
        "mcnemar": mcnemar(hurt, helped)._asdict(),
        "changed_rate": changed["changed_rate"],
        "helped": helped,
        "hurt": hurt,
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
