"""Users into tune, select and confirm.

A user's part depends on the user's id alone: users are ordered by SHA-256 of their id and cut by the shares. So two
studies on the same data, whatever their seeds, never swap confirm users for tune users.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from personalization.data.records import Dataset
from personalization.errors import DataError

PARTS = ("tune", "select", "confirm")
DEFAULT_SHARES = {"tune": 0.3, "select": 0.1, "confirm": 0.6}


@dataclass(frozen=True)
class Splits:
    """Three data sets without a common user. Trials see `tune`; `confirm` is for one test."""

    tune: Dataset
    select: Dataset
    confirm: Dataset

    def __post_init__(self) -> None:
        seen: dict[str, str] = {}
        for part in PARTS:
            dataset = self.part(part)
            if not dataset.questions:
                raise DataError(f"the {part} split has no questions; give more users or larger shares")
            if set(dataset.labels) != set(self.tune.labels):
                raise DataError(f"the {part} split has other labels than the tune split")
            if dataset.labels != self.tune.labels:
                object.__setattr__(self, part, Dataset(dataset.task, self.tune.labels, dataset.questions))
            for user in {q.user_id for q in dataset.questions}:
                if seen.setdefault(user, part) != part:
                    raise DataError(f"user {user} is in both {seen[user]} and {part}; a user belongs to one split")

    def part(self, name: str) -> Dataset:
        """The data set of one of `PARTS`."""
        return {"tune": self.tune, "select": self.select, "confirm": self.confirm}[name]

    def fingerprints(self) -> dict[str, str]:
        """part -> SHA-256 of its records."""
        return {part: self.part(part).fingerprint() for part in PARTS}


def user_blocks(user_ids: Sequence[str], count: int) -> list[NDArray[np.int64]]:
    """Rows of about equally many users, whole users in order of appearance; fewer blocks of fewer users."""
    names = list(dict.fromkeys(user_ids))
    block = {name: i * count // len(names) for i, name in enumerate(names)}
    blocks = np.array([block[user] for user in user_ids])
    return [np.flatnonzero(blocks == number) for number in np.unique(blocks)]


def split_train_dev(train: Dataset, dev: Dataset, shares: Mapping[str, float] = DEFAULT_SHARES) -> Splits:
    """Tune and select users from `train`, in proportion to their shares; all users of `dev` confirm."""
    if not train.questions or not dev.questions:
        raise DataError("the train and dev files must both hold questions")
    if set(train.labels) != set(dev.labels):
        odd = ", ".join(sorted(set(train.labels) ^ set(dev.labels)))
        raise DataError(f"the labels of the train and dev files differ in {odd}")
    users = _ordered(train)
    end = round(shares["tune"] / (shares["tune"] + shares["select"]) * len(users))
    return Splits(train.of_users(users[:end]), train.of_users(users[end:]), dev)


def split_users(dataset: Dataset, shares: Mapping[str, float] = DEFAULT_SHARES) -> Splits:
    """Split by user with the given shares of users, which must be positive and add up to 1."""
    ordered = _ordered(dataset)
    parts: dict[str, Dataset] = {}
    start, passed = 0, 0.0
    for part in PARTS:
        passed += shares[part]
        end = round(passed * len(ordered))
        parts[part] = dataset.of_users(ordered[start:end])
        start = end
    return Splits(**parts)


def _ordered(dataset: Dataset) -> list[str]:
    """The users, by SHA-256 of their ids."""
    return sorted({q.user_id for q in dataset.questions}, key=lambda user: hashlib.sha256(user.encode()).digest())
