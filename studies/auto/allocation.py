"""Which arm gets the next slice of time, and which gets none any more. Pure functions of how the arms stand.

An arm stands by its best trial: the gain over the baseline, user by user, on users that it did not learn from. Two arms
are compared on the users that both are judged on, in pairs, so that what makes a user hard for both takes no part. With
d_u the difference summed over the n_u questions of user u, the difference of the arms and its standard error are

    D = sum d_u / sum n_u        s^2 = U / (U - 1) * sum (d_u - D n_u)^2 / (sum n_u)^2

What the last slice brought to an arm, and the first one beyond its first trial (`lift`), it may bring again. An arm is
out when D + lift + Z s < 0 against the leader: it cannot win any more. Of those left the leader and its likeliest rival
share the time, and the one that had less of it goes on (top-two allocation, Russo 2016): time spent on either tells
most about which of them is the best.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy
from numpy.typing import NDArray

from tracking.significance import difference

Z = 2.0
"""Standard errors between what is measured and what can still be hoped for."""


@dataclass(frozen=True)
class Standing:
    """How an arm stands. `gains` [U]: over the baseline, summed over a user's questions; NaN for users that it is not
    judged on. `lift`: what its last slice brought; `seconds`: what it has had; `done`: nothing is left to try."""

    name: str
    gains: NDArray[np.float64]
    seconds: float = 0.0
    lift: float = 0.0
    done: bool = False


def mean_gain(arm: Standing, sizes: NDArray[np.integer]) -> float:
    """An arm's gain a question, on the users that it is judged on."""
    known = ~np.isnan(arm.gains)
    return float(arm.gains[known].sum() / max(1, sizes[known].sum()))


def leader(arms: Sequence[Standing], sizes: NDArray[np.integer]) -> Standing:
    """The arm that is ahead; of equals the one that comes first."""
    best = arms[0]
    for arm in arms[1:]:
        if difference(arm.gains, best.gains, sizes)[0] > 0:
            best = arm
    return best


def hopeless(arm: Standing, best: Standing, sizes: NDArray[np.integer]) -> bool:
    """Whether an arm cannot overtake the leader any more."""
    mean, error = difference(arm.gains, best.gains, sizes)
    return arm is not best and mean + max(0.0, arm.lift) + Z * error < 0


def chance(arm: Standing, best: Standing, sizes: NDArray[np.integer]) -> float:
    """How likely it is that an arm is, or becomes by another slice, better than the leader."""
    mean, error = difference(arm.gains, best.gains, sizes)
    mean += max(0.0, arm.lift)
    if error == 0:
        return float(mean > 0)
    return float(scipy.special.ndtr(mean / error)) if np.isfinite(error) else 0.5


def following(arms: Sequence[Standing], sizes: NDArray[np.integer]) -> Standing | None:
    """The arm that goes on; None where nothing is left to try."""
    if not arms:
        return None
    best = leader(arms, sizes)
    rivals = [arm for arm in arms if arm is not best and not arm.done and not hopeless(arm, best, sizes)]
    if not rivals:
        return None if best.done else best
    rival = max(rivals, key=lambda arm: (chance(arm, best, sizes), -arm.seconds))
    return rival if best.done or rival.seconds <= best.seconds else best
