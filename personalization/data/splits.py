"""Questions into tune, select and confirm.

By user, a user's part depends on the user's id alone: users are ordered by SHA-256 of their id and cut by the shares.
So two studies on the same data, whatever their seeds, never swap confirm users for tune users. By time, a user's
earliest questions tune and the latest confirm: known users, new questions.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from personalization.data.records import Dataset
from personalization.errors import DataError

PARTS = ("tune", "select", "confirm")
DEFAULT_SHARES = {"tune": 0.3, "select": 0.1, "confirm": 0.6}
LEARNING_SHARES = {"tune": 0.5, "select": 0.1, "confirm": 0.4}
"""Of chains that learn from the tune users' labels: what is learned from few users is worth little."""


@dataclass(frozen=True)
class Splits:
    """Three data sets without a common user, or with `shared_users` without a common question.

    Trials see `tune`; `confirm` is for one test; `select` may be empty.
    """

    tune: Dataset
    select: Dataset
    confirm: Dataset
    shared_users: bool = False

    def __post_init__(self) -> None:
        for part in PARTS:
            dataset = self.part(part)
            if not dataset.questions and part != "select":
                raise DataError(f"the {part} split has no questions; give more users or larger shares")
            if set(dataset.labels) != set(self.tune.labels):
                raise DataError(f"the {part} split has other labels than the tune split")
            if dataset.labels != self.tune.labels:
                object.__setattr__(self, part, Dataset(dataset.task, self.tune.labels, dataset.questions))
        self._refuse_common()

    def _refuse_common(self) -> None:
        """DataError where a user, or with shared users a question, stands in two parts.

        Files number questions as they like: one is known by user, text and date.
        """
        seen: dict[tuple[Any, ...], str] = {}
        common: dict[tuple[Any, ...], str] = {}
        for part in PARTS:
            asked = {(q.user_id, q.text, q.date) for q in self.part(part).questions}
            for found in asked if self.shared_users else {one[:1] for one in asked}:
                if seen.setdefault(found, part) != part:
                    common.setdefault(found, part)
        if not common:
            return
        first = min(common, key=str)
        where, more = f"{seen[first]} and {common[first]}", f" (and {len(common) - 1} more)" if len(common) > 1 else ""
        if self.shared_users:
            raise DataError(f"user {first[0]}{more} is asked {first[1]!r:.60} in both {where}; a question has one part")
        raise DataError(
            f"user {first[0]}{more} is in both {where}, and a user belongs to one split; take split: time for known "
            "users and their new questions, or split: users to divide the users anew"
        )

    @property
    def new_users(self) -> frozenset[str]:
        """The confirm users of whom no question is in tune."""
        return frozenset(_users(self.confirm)) - frozenset(_users(self.tune))

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


def split_train_dev(
    train: Dataset, dev: Dataset, shares: Mapping[str, float] = DEFAULT_SHARES, shared_users: bool = False
) -> Splits:
    """Tune and select users from `train`, in proportion to their shares; all questions of `dev` confirm.

    `shared_users`: users of `train` may be asked again in `dev`.
    """
    if not train.questions or not dev.questions:
        raise DataError("the train and dev files must both hold questions")
    if train.task != dev.task:
        raise DataError(f"the train files are of {train.task}, and the dev files of {dev.task}")
    if set(train.labels) != set(dev.labels):
        odd = ", ".join(sorted(set(train.labels) ^ set(dev.labels)))
        raise DataError(f"the labels of the train and dev files differ in {odd}")
    users = _ordered(train)
    end = round(shares["tune"] / (shares["tune"] + shares["select"]) * len(users))
    return Splits(train.of_users(users[:end]), train.of_users(users[end:]), dev, shared_users)


def split_time(dataset: Dataset, shares: Mapping[str, float] = DEFAULT_SHARES) -> Splits:
    """Each user's earliest questions tune, at least the first, and the latest confirm, by shares of the questions."""
    own: dict[str, list[int]] = {}
    for row, question in enumerate(dataset.questions):
        if question.date is None:
            raise DataError(
                f"question {question.id} has no date that can be read, and split: time orders a user's questions by "
                'it; give every question a "date", or train and dev files, or take split: users'
            )
        own.setdefault(question.user_id, []).append(row)
    part = np.empty(len(dataset), dtype=np.int64)
    for rows in own.values():
        rows.sort(key=lambda row: dataset.questions[row].date or datetime.min)
        first = math.ceil(shares["tune"] * len(rows) - 1e-9)
        second = max(first, round((shares["tune"] + shares["select"]) * len(rows)))
        part[rows[:first]], part[rows[first:second]], part[rows[second:]] = 0, 1, 2
    tune, select, confirm = (dataset.only(part == number) for number in range(len(PARTS)))
    return Splits(tune, select, confirm, shared_users=True)


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
    return Splits(parts["tune"], parts["select"], parts["confirm"])


def _ordered(dataset: Dataset) -> list[str]:
    """The users, by SHA-256 of their ids."""
    return sorted(_users(dataset), key=lambda user: hashlib.sha256(user.encode()).digest())


def _users(dataset: Dataset) -> set[str]:
    return {question.user_id for question in dataset.questions}
