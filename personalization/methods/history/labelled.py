"""Labelled history items as questions to learn from.

Every labelled item of a user's longest known history is asked as that user's questions are, with the user's other
items as its history: what puts items in front of a question then puts them in front of an item. An item that one of the
user's questions asks about is left out everywhere, and no gold label of a question is read. `varied` and
`with_words_dropped` show the same items differently.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from personalization.data.known import History, learned_histories
from personalization.data.prompts import usual
from personalization.data.records import Dataset, HistoryItem, Question
from personalization.errors import DataError

HELD_OUT = 5
"""One user, or item, in so many is held out."""
OTHERS = 64
"""How many of the user's other items an item knows, the latest."""


def labelled_items(dataset: Dataset) -> Dataset:
    """The labelled items of every user as questions; `gold` is the item's label."""
    if not dataset.questions:
        return dataset
    usually, frames = usual(dataset.task, dataset.questions), dict[str, Question]()
    for question in dataset.questions:
        if dataset.task.has_form(question.text):
            frames.setdefault(question.user_id, question)
    found = []
    for user, items in learned_histories(dataset).items():
        for place, item in enumerate(items):
            if item.label in dataset.labels:
                text = dataset.task.about(frames.get(user, usually).text, item.text)
                found.append(Question(f"{user}/{item.id}", user, text, others(items, place), item.label))
    return Dataset(dataset.task, dataset.labels, tuple(found))


def others(items: History, place: int) -> History:
    """The latest of the items beside the one at this place."""
    after = items[max(place + 1, len(items) - OTHERS) :]
    return (*items[max(0, place - OTHERS + len(after)) : place], *after)


def needed(items: Dataset) -> Dataset:
    """These items; DataError where there are none."""
    if not items.questions:
        raise DataError(
            "adapter and head learn from labelled history items, and there are none; leave them out of the chain"
        )
    return items


def held_out(items: Dataset, level: str) -> tuple[Dataset, Dataset]:
    """(items to learn from, items to judge by): every fifth user, or at level `user` every user's newest fifth."""
    questions = items.questions
    users = [q.user_id for q in questions]
    if level == "user":
        sizes, place, judged = Counter(users), Counter[str](), []
        for row, user in enumerate(users):
            place[user] += 1
            if place[user] > sizes[user] - sizes[user] // HELD_OUT:
                judged.append(row)
    else:
        order = sorted(set(users), key=lambda user: hashlib.sha256(user.encode()).digest())
        chosen = set(order[::HELD_OUT]) if len(order) > 1 else set()
        judged = [row for row, user in enumerate(users) if user in chosen]
    rest = sorted(set(range(len(users))) - set(judged))

    def some(rows: Sequence[int]) -> Dataset:
        return Dataset(items.task, items.labels, tuple(questions[row] for row in rows))

    return some(rest), some(judged)


def judged_at_every_level(items: Dataset) -> set[str]:
    """Ids of the items that no level learns from: the newest fifth of every fifth user's."""
    of_users, newest = ({q.id for q in held_out(items, level)[1].questions} for level in ("unified", "user"))
    return of_users & newest


def with_words_dropped(items: Dataset, rate: float) -> Dataset:
    """The same items, each word of what is to be classified left out at this rate; one word stays."""
    random, out = np.random.default_rng(0), []
    for question in items.questions:
        words = items.task.item(question.text).split(" ")
        kept = [word for word, drawn in zip(words, random.random(len(words)), strict=True) if drawn >= rate]
        out.append(replace(question, text=items.task.about(question.text, " ".join(kept or words[:1]))))
    return Dataset(items.task, items.labels, tuple(out))


def varied(
    ranked: Sequence[Sequence[HistoryItem]], k: int, dropped: float, swapped: float, shuffled: float
) -> list[list[HistoryItem]]:
    """The first k items of each list, to stand in front of a prompt.

    At rate `swapped` an item gives its place to one ranked behind the first k; at rate `dropped` a place stays empty; a
    share `shuffled` of the lists comes in any order.
    """
    random, out = np.random.default_rng(1), []
    for items in ranked:
        shown, spare = list(items[:k]), items[k:]
        for place, other in zip(np.flatnonzero(random.random(len(shown)) < swapped), spare, strict=False):
            shown[place] = other
        kept = [item for item, drawn in zip(shown, random.random(len(shown)), strict=True) if drawn >= dropped]
        if random.random() < shuffled:
            kept = [kept[place] for place in random.permutation(len(kept))]
        out.append(kept)
    return out
