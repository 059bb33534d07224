"""What a personalised classification data set is made of. Stands on nothing but dates."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime

from personalization.data.dates import written
from personalization.tasks import Task


@dataclass(frozen=True, slots=True)
class HistoryItem:
    """One past item of a user. `label` is None where the task's history carries none (LaMP-1); `date` is in UTC.

    `more`: further fields, (name, text), that the task's wording may name.
    """

    id: str
    text: str
    label: str | None
    date: datetime | None = None
    more: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Question:
    """One item to classify. `text` is the question as it stands in the data, of LaMP the whole `input`; `gold` is None
    where no answer is published.

    `history` is all that came with the question; what may be used of it says `known.known_items`, which keeps its
    answer in `known`, by the task's form. `date`: when it was asked, in UTC.
    """

    id: str
    user_id: str
    text: str
    history: tuple[HistoryItem, ...]
    gold: str | None = None
    date: datetime | None = None
    known: dict[str | None, tuple[HistoryItem, ...]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )


@dataclass(frozen=True, slots=True)
class Dataset:
    """Questions that share one label list. `labels` is in the order of the score table's columns."""

    task: Task
    labels: tuple[str, ...]
    questions: tuple[Question, ...]

    def __len__(self) -> int:
        return len(self.questions)

    def of_users(self, users: Iterable[str]) -> Dataset:
        """The questions of these users, in the order they have here."""
        wanted = frozenset(users)
        return self.only([q.user_id in wanted for q in self.questions])

    def only(self, wanted: Iterable[bool]) -> Dataset:
        """The questions for which `wanted` [n] is true."""
        chosen = tuple(q for q, own in zip(self.questions, wanted, strict=True) if own)
        return Dataset(self.task, self.labels, chosen)

    def fingerprint(self) -> str:
        """SHA-256 over every field of every record, in order."""
        digest = hashlib.sha256(json.dumps([self.task.name, self.labels]).encode())
        for q in self.questions:
            history = [(h.id, h.text, h.label, written(h.date), *h.more) for h in q.history]
            asked = [] if q.date is None else [written(q.date)]
            digest.update(json.dumps([q.id, q.user_id, q.text, q.gold, history, *asked]).encode())
        return digest.hexdigest()
