"""Histories by user, in SQLite: what a user was asked, with the label that came later.

An item is known by the request that it comes from: the same feedback again replaces its label.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from pathlib import Path

from personalization.data.dates import read_date, written
from personalization.data.records import HistoryItem
from personalization.errors import UnavailableError

MOST_ITEMS = 1000
"""The newest of a user that are read."""


class Histories:
    """A store in one file. One thread may write while others read."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(0o600)
        self._store = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        self._store.execute("PRAGMA journal_mode = WAL")
        self._store.execute("PRAGMA synchronous = FULL")
        self._store.execute(
            "CREATE TABLE IF NOT EXISTS items (number INTEGER PRIMARY KEY, request TEXT UNIQUE NOT NULL, "
            "user TEXT NOT NULL, text TEXT NOT NULL, label TEXT, date TEXT)"
        )
        self._store.execute("CREATE INDEX IF NOT EXISTS by_user ON items (user, number)")

    def of(self, user: str) -> tuple[HistoryItem, ...]:
        """A user's newest items, oldest first."""
        rows = self._store.execute(
            "SELECT request, text, label, date FROM items WHERE user = ? ORDER BY number DESC LIMIT ?",
            (user, MOST_ITEMS),
        ).fetchall()
        return tuple(HistoryItem(key, text, label, read_date(date)) for key, text, label, date in reversed(rows))

    def add(self, items: Iterable[tuple[str, HistoryItem]]) -> None:
        """Add (user, item) in one transaction; an item of a known id has its label replaced.

        UnavailableError where they cannot be written: then none is.
        """
        rows = [(item.id, user, item.text, item.label, written(item.date)) for user, item in items]
        try:
            self._store.execute("BEGIN")
            self._store.executemany(
                "INSERT INTO items (request, user, text, label, date) VALUES (?, ?, ?, ?, ?) "
                "ON CONFLICT (request) DO UPDATE SET label = excluded.label",
                rows,
            )
            self._store.execute("COMMIT")
        except sqlite3.Error as error:
            self._store.rollback()
            raise UnavailableError(f"the histories cannot be written: {error}; give the label again") from None

    def close(self) -> None:
        """Give the file back."""
        self._store.close()
