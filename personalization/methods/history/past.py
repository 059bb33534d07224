"""The past of each question: the labelled items that are known when it is asked, each asked as the question is.

An item has the items before it as its history, and the question's date: what may be known of others is what may be
known when the question is asked. Each past depends on its question alone.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from personalization.data.known import History, known_items, learned_histories
from personalization.data.records import Dataset, Question
from personalization.methods.history.labelled import OTHERS

PAST = 16
"""So many of the latest labelled items are asked."""


class Past(NamedTuple):
    """`items`: of all pasts, m questions whose `gold` is the item's label; `owners` int [m]: the past of each; `places`
    int [n]: the past of each of the questions, which may share one."""

    items: Dataset
    owners: NDArray[np.int64]
    places: NDArray[np.int64]

    @property
    def total(self) -> int:
        """Pasts."""
        return int(self.places.max()) + 1 if len(self.places) else 0


def past_of(dataset: Dataset) -> Past:
    """The past of each question of a data set."""
    known: dict[Hashable, int] = {}
    items: list[Question] = []
    owners, places = [], []
    for question in dataset.questions:
        history = known_items(dataset.task, question)
        key = (question.user_id, tuple(map(id, history)), dataset.task.frame(question.text), question.date)
        if key not in known:
            known[key] = len(known)
            own = _asked(dataset, question, history)
            items += own
            owners += [known[key]] * len(own)
        places.append(known[key])
    found = Dataset(dataset.task, dataset.labels, tuple(items))
    return Past(found, np.array(owners, dtype=np.int64), np.array(places, dtype=np.int64))


def _asked(dataset: Dataset, question: Question, history: History) -> list[Question]:
    labelled = [place for place, item in enumerate(history) if item.label in dataset.labels]
    return [
        Question(
            f"{question.id}/{history[place].id}",
            question.user_id,
            dataset.task.about(question.text, history[place].text),
            history[max(0, place - OTHERS) : place],
            history[place].label,
            question.date,
        )
        for place in labelled[-PAST:]
    ]


def one_each(dataset: Dataset) -> Dataset:
    """One question of each user, the last, with the longest history known without any item that a question asks about:
    what may be learned from."""
    last = {question.user_id: question for question in dataset.questions}
    found = [replace(last[user], history=history) for user, history in learned_histories(dataset).items()]
    return Dataset(dataset.task, dataset.labels, tuple(found))
