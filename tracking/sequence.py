"""Confidence sequences by user: intervals that hold at every look at once, however often one looks.

Normal mixture (Howard, Ramdas, McAuliffe, Sekhon 2021, eq. 14; with an estimated variance Waudby-Smith et al. 2024):
for t users with mean m and standard deviation s of what is observed of each,

    m +- (s / t) sqrt((t + rho) log((t + rho) / (rho alpha^2)))

An observation is a user, since answers to one user hang together. It must not change once it is counted: in tier j a
user counts with the mean over exactly the first 2^j labels, as soon as there are so many. Tier j has the level
alpha / ((j + 1)(j + 2)), which adds up to alpha, so that the tiers hold together and more labels by user help.

The mean beside the interval is of all that came: of each user's mean, every label counted. No tier holds just these
values, so it may lie outside of what all tiers leave; then the nearest end is given. Where the interval holds the
truth, which at all looks together it does with 1 - alpha, that end is nearer to it than the mean is. Of an empty
interval the mean is given as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import fsum, inf, log, sqrt
from typing import Literal, NamedTuple

import numpy as np

FEWEST_USERS = 20
"""Below this the estimated variance carries no interval."""
TIGHT_AT = 100
"""Users at which the interval is tightest."""
PRIOR_VARIANCE = 0.25
"""Of one further user, so that users who are all alike do not give a point."""
TIERS = 12

Verdict = Literal["better", "equal", "worse", "go on", "inconclusive"]


class Interval(NamedTuple):
    """A mean over users, and the ends of its interval; `users`, `labels`: of the tier that says most."""

    mean: float
    low: float
    high: float
    users: int
    labels: int


def rho_of(alpha: float) -> float:
    """The mixture's parameter with which the interval is tightest at `TIGHT_AT` users."""
    spent = -2 * log(alpha)
    return TIGHT_AT / (spent + log(spent) + 1)


def radius(deviation: float, users: int, alpha: float) -> float:
    """Half the interval's width; infinite below `FEWEST_USERS`."""
    if users < FEWEST_USERS:
        return inf
    rho = rho_of(alpha)
    return deviation / users * sqrt((users + rho) * log((users + rho) / (rho * alpha**2)))


def _deviation(total: float, squares: float, users: int) -> float:
    return sqrt((max(0.0, squares - total**2 / users) + PRIOR_VARIANCE) / users) if users else inf


class Tiers:
    """Values by user as they come, in each tier the sums over the users that count there. One value: O(1)."""

    def __init__(self) -> None:
        self._count: dict[str, int] = {}
        self._sum: dict[str, float] = {}
        self._sums = np.zeros((TIERS, 3))

    @property
    def mean(self) -> float:
        """Of all users' means, of every value that came; 0 before one came."""
        means = [total / self._count[user] for user, total in self._sum.items()]
        return fsum(means) / len(means) if means else 0.0

    def add(self, user: str, value: float) -> None:
        """One more value of a user."""
        count = self._count[user] = self._count.get(user, 0) + 1
        total = self._sum[user] = self._sum.get(user, 0.0) + value
        tier = count.bit_length() - 1
        if count == 1 << tier and tier < TIERS:
            mean = total / count
            self._sums[tier] += (1.0, mean, mean * mean)

    def tier(self, tier: int, alpha: float) -> tuple[float, float, int]:
        """(mean, radius, users) of one tier, whose share of alpha is taken here."""
        users, total, squares = self._sums[tier]
        count = int(users)
        if count == 0:
            return 0.0, inf, 0
        level = alpha / ((tier + 1) * (tier + 2))
        return total / count, radius(_deviation(total, squares, count), count, level), count


def paired(values: Tiers, alpha: float = 0.05) -> Interval:
    """The mean paired difference over users, and what all tiers say of it together."""
    return _together(values.mean, [(values.tier(tier, alpha), tier) for tier in range(TIERS)])


def unpaired(first: Tiers, second: Tiers, alpha: float = 0.05) -> Interval:
    """The mean of the first group's users minus that of the second's."""
    found = []
    for tier in range(TIERS):
        (mean, wide, users), (other, also, more) = first.tier(tier, alpha / 2), second.tier(tier, alpha / 2)
        found.append(((mean - other, wide + also, min(users, more)), tier))
    return _together(first.mean - second.mean, found)


def _together(mean: float, tiers: Sequence[tuple[tuple[float, float, int], int]]) -> Interval:
    (_, wide, users), tier = min(tiers, key=lambda one: one[0][1])
    if wide == inf:
        most = max(tiers, key=lambda one: one[0][2])
        return Interval(mean, -inf, inf, most[0][2], 1 << most[1])
    low = max(middle - wide for (middle, wide, _), _ in tiers)
    high = min(middle + wide for (middle, wide, _), _ in tiers)
    inside = float(min(max(mean, low), high)) if low <= high else mean
    return Interval(inside, low, high, users, 1 << tier)


def verdict(found: Interval, margin: float, most_users: int | None = None) -> Verdict:
    """What an interval says. `margin`: what is as good as equal; `most_users`: so many and no more are waited for.

    Tiers that contradict each other, an empty interval, come of users who changed: inconclusive.
    """
    if found.low > found.high:
        return "inconclusive"
    if found.low > 0:
        return "better"
    if found.high < 0:
        return "worse"
    if -margin < found.low and found.high < margin:
        return "equal"
    return "inconclusive" if most_users is not None and found.users >= most_users else "go on"
