"""What a personalised classification data set is made of. Stands on nothing."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class HistoryItem:
    """One past item of a user. `label` is None where the task's history carries none (LaMP-1)."""

    id: str
    text: str
    label: str | None
    date: str | None = None


@dataclass(frozen=True, slots=True)
class Question:
    """One item to classify. `text` is the whole LaMP `input`; `gold` is None where no answer is published."""

    id: str
    user_id: str
    text: str
    history: tuple[HistoryItem, ...]
    gold: str | None


def chronological(history: tuple[HistoryItem, ...]) -> tuple[HistoryItem, ...]:
    """Oldest first: by date where all items have one, else as they stand in the file."""
    if any(item.date is None for item in history):
        return history
    return tuple(sorted(history, key=lambda item: item.date or ""))


@dataclass(frozen=True, slots=True)
class Dataset:
    """Questions that share one label list. `labels` is in the order of the score table's columns."""

    task: str
    labels: tuple[str, ...]
    questions: tuple[Question, ...]

    def __len__(self) -> int:
        return len(self.questions)

    def of_users(self, users: Iterable[str]) -> Dataset:
        """The questions of these users, in the order they have here."""
        wanted = frozenset(users)
        return Dataset(self.task, self.labels, tuple(q for q in self.questions if q.user_id in wanted))

    def fingerprint(self) -> str:
        """SHA-256 over every field of every record, in order."""
        digest = hashlib.sha256(json.dumps([self.task, self.labels]).encode())
        for q in self.questions:
            history = [(h.id, h.text, h.label, h.date) for h in q.history]
            digest.update(json.dumps([q.id, q.user_id, q.text, q.gold, history]).encode())
        return digest.hexdigest()
