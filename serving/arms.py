"""Which of two configs a user is answered by, and whether the shares are as they were meant.

    arm(user) = b if SHA-256(salt | user) / 2^256 < share else a

A user stays in an arm as long as salt and share stand. A larger share only moves users from a to b.
"""

from __future__ import annotations

import hashlib
from typing import Literal

from scipy import stats

ALARM = 0.001
"""A ratio of users that is less probable than this has a cause."""


def arm_of(user: str, salt: str, share: float) -> Literal["a", "b"]:
    """`a` or `b`."""
    drawn = int.from_bytes(hashlib.sha256(f"{salt}|{user}".encode("utf-8", "surrogatepass")).digest()[:8], "big")
    return "b" if drawn < share * 2.0**64 else "a"


def sample_ratio(users_a: int, users_b: int, share: float) -> float:
    """p-value of the users in both arms under the share that was meant: chi-square with one degree of freedom."""
    total = users_a + users_b
    if total == 0 or not 0 < share < 1:
        return 1.0
    return float(stats.chisquare([users_a, users_b], [total * (1 - share), total * share]).pvalue)
