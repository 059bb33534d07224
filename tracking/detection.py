"""What a set of users can show at all, said before it is looked at.

The smallest detectable paired difference solves Connor's 1987 sample-size formula for n questions over their design
effect: questions of one user resemble each other, so that n of them tell less than n of different users (Kish 1965).

    deff = 1 + (sum m_u^2 / sum m_u - 1) * rho

m_u is the number of questions of user u; rho is the intraclass correlation of an un-tuned system's hits, by analysis of
variance, known before anything is tested.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import scipy
from numpy.typing import NDArray

POWER = 0.8


def intraclass(values: NDArray[np.number[Any]], owners: NDArray[np.int64]) -> float:
    """Correlation of values [n] of one owner, int [n], from 0 to 1; 0 where no owner has two."""
    sizes = np.bincount(owners)
    groups, n = len(sizes), len(values)
    if groups < 2 or n == groups:
        return 0.0
    means = np.bincount(owners, weights=values) / sizes
    within = float(((values - means[owners]) ** 2).sum() / (n - groups))
    between = float((sizes * (means - values.mean()) ** 2).sum() / (groups - 1))
    size = (n - (sizes**2).sum() / n) / (groups - 1)
    spread = between + (size - 1) * within
    return min(1.0, max(0.0, (between - within) / spread)) if spread > 0 else 0.0


def design_effect(correlation: float, owners: NDArray[np.int64]) -> float:
    """How many questions of these owners, int [n], tell as much as one question of an owner of its own."""
    sizes = np.bincount(owners).astype(np.float64)
    return float(1 + ((sizes**2).sum() / sizes.sum() - 1) * correlation)


def spent_alpha(alpha: float, use: int) -> float:
    """The level at which the `use`-th look (from 1) at users is tested; over all looks these add up to alpha."""
    return alpha * 6 / (math.pi * use) ** 2


def smallest_p(users: int) -> float:
    """The smallest two-sided p-value that a test by user can reach: all users differ, and in one direction."""
    return float(2.0 ** (1 - users)) if users > 1 else 1.0


def can_show(users: int, level: float) -> bool:
    """Whether so many users could pass a test at this level, if all of them gained."""
    return level > 0 and smallest_p(users) < level


def detectable_difference(n: float, discordance: float = 0.2, alpha: float = 0.05) -> float | None:
    """Smallest difference in accuracy that n independent questions show with a power of 80 %; None where none is."""
    z_alpha, z_power = scipy.stats.norm.ppf(1 - alpha / 2), scipy.stats.norm.ppf(POWER)

    def excess(difference: float) -> float:
        spread = z_alpha * discordance**0.5 + z_power * (discordance - difference**2) ** 0.5
        return float(spread**2 / difference**2 - n)

    largest = min(discordance, discordance**0.5)
    if excess(largest) > 0:
        return None
    return float(scipy.optimize.brentq(excess, 1e-6, largest))
