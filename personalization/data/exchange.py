"""The same questions with other histories: those of another user, or only their newest items.

What a chain gains when every question is answered with another user's history is general: it learned it from all users,
or any history would do. What its own history adds to that is personal.

Users are put in order of the length of their history (the longest that one of their questions knows), those of equal
length by SHA-256 of their ids, and neighbours exchange: the first with the second, the third with the fourth; the last
three of an odd number pass theirs round. So nobody keeps a history, everybody's is given once, no other pairs have
lengths that differ less in sum, and the order of the data does not matter. Cost: one sort.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from personalization.data.known import History, known_items
from personalization.data.records import Dataset


class Exchange(NamedTuple):
    """A data set whose users have exchanged their histories.

    `dataset`: the questions in their order, each with the id and the history of `givers[its user]`; `rings`: user ->
    number of the two or three who exchange with each other; `off_by`: by how many items a question's history is longer
    or shorter than its own, the median.
    """

    dataset: Dataset
    givers: Mapping[str, str]
    rings: Mapping[str, int]
    off_by: float


def exchange(dataset: Dataset) -> Exchange | None:
    """Every question with another user's history; None where there are fewer than two users.

    A question gets what the giver knew at that of his own questions where he knew nearly as many items; of equally near
    ones the shorter history, then the one with the smaller id. It takes his id as well, so that what is kept by user
    (an adapter of his own) is his, too; whose question it is says the data set that was given. His items keep their
    order and lose their dates, so that none is later than the question. The item that is asked about is not known,
    whosever history it stands in: `known_items` leaves it out by its text.
    """
    known = _known_by_length(dataset)
    if len(known) < 2:
        return None
    rings = _rings(known)
    givers = {user: ring[(place + 1) % len(ring)] for ring in rings for place, user in enumerate(ring)}
    given: dict[tuple[str, int], History] = {}
    questions, gaps = [], []
    for question in dataset.questions:
        giver, length = givers[question.user_id], len(known_items(dataset.task, question))
        if (giver, length) not in given:
            nearest = min(known[giver], key=lambda other: (abs(other - length), other))
            given[giver, length] = tuple(replace(item, date=None) for item in known[giver][nearest])
        history = given[giver, length]
        gaps.append(abs(len(history) - length))
        questions.append(replace(question, user_id=giver, history=history))
    numbers = {user: number for number, ring in enumerate(rings) for user in ring}
    return Exchange(replace(dataset, questions=tuple(questions)), givers, numbers, float(np.median(gaps)))


def _known_by_length(dataset: Dataset) -> dict[str, dict[int, History]]:
    """user -> number of known items -> these, at one of the user's questions."""
    found: dict[str, dict[int, History]] = {}
    for question in sorted(dataset.questions, key=lambda question: question.id):
        known = known_items(dataset.task, question)
        found.setdefault(question.user_id, {}).setdefault(len(known), known)
    return found


def _rings(known: Mapping[str, Mapping[int, History]]) -> list[list[str]]:
    """Two or three users each, of histories that are about equally long."""
    order = sorted(known, key=lambda user: (max(known[user]), hashlib.sha256(user.encode()).digest()))
    starts = range(0, len(order) - len(order) % 2, 2)
    rings = [order[start : start + 2] for start in starts]
    if len(order) % 2:
        rings[-1].append(order[-1])
    return rings


def newest(dataset: Dataset, count: int) -> Dataset:
    """The questions with only the newest items of what each of them knows, so many at most.

    They are asked by somebody new: what is kept by user (an adapter of his own) was learned from more than these.
    """
    questions = []
    for question in dataset.questions:
        known = known_items(dataset.task, question)
        stranger = f"{question.user_id} with {count} items"
        questions.append(replace(question, user_id=stranger, history=known[max(0, len(known) - count) :]))
    return replace(dataset, questions=tuple(questions))
