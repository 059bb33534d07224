"""What may be known of a user when a question is asked.

Every method, prior, reference and group takes a user's history from here; nothing else orders or filters one. So an
answer depends on the question and what came with it, never on what else is asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from operator import is_

import numpy as np
from numpy.typing import NDArray

from personalization.data.prompts import asked_text
from personalization.data.records import Dataset, HistoryItem, Question
from personalization.tasks import Task

History = tuple[HistoryItem, ...]


def known_items(task: Task, question: Question) -> History:
    """The question's history, oldest first, without the asked item itself and without items later than the question.

    Items without a date are the oldest, in the order of the file. The answer is kept with the question.
    """
    if task.form not in question.known:
        question.known[task.form] = _known(task, question)
    return question.known[task.form]


def _known(task: Task, question: Question) -> History:
    asked, now, before = asked_text(task, question), question.date, datetime.min
    items = [
        item
        for item in question.history
        if (item.date is None or now is None or item.date <= now) and item.text.strip() != asked
    ]
    items.sort(key=lambda item: item.date or before)
    unchanged = len(items) == len(question.history) and all(map(is_, items, question.history))
    return question.history if unchanged else tuple(items)


def newcomers(dataset: Dataset) -> set[str]:
    """The users of whom nothing is known at any of their questions."""
    known = {question.user_id for question in dataset.questions if known_items(dataset.task, question)}
    return {question.user_id for question in dataset.questions} - known


def learned_histories(dataset: Dataset) -> dict[str, History]:
    """user -> the longest history known at one of the user's questions, of equals the last; to learn from.

    Without an item that any of the user's questions asks about. It depends on which questions there are: no question
    may be answered from it.
    """
    longest: dict[str, History] = {}
    asked: dict[str, set[str]] = {}
    for question in dataset.questions:
        known = known_items(dataset.task, question)
        asked.setdefault(question.user_id, set()).add(asked_text(dataset.task, question))
        if len(known) >= len(longest.get(question.user_id, ())):
            longest[question.user_id] = known
    return {user: tuple(i for i in items if i.text.strip() not in asked[user]) for user, items in longest.items()}


def distinct(histories: Sequence[History]) -> tuple[list[History], NDArray[np.int64]]:
    """(each history once, in order of appearance; the place of each given one among them, int [n])."""
    by_value: dict[History, int] = {}
    by_identity: dict[int, int] = {}
    for history in histories:
        if id(history) not in by_identity:  # long histories are slow to compare, and questions of a user share them
            by_identity[id(history)] = by_value.setdefault(history, len(by_value))
    return list(by_value), np.array([by_identity[id(history)] for history in histories], dtype=np.int64)
