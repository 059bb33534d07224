"""Questions of users with their histories, from files or from a table."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chamtune.frames import columns_of, rows_of
from personalization.data import records
from personalization.data.lamp import read_dataset, write_dataset
from personalization.data.table import Columns, read_table, rows_as_questions
from personalization.errors import UsageError
from personalization.tasks import Task, load_task

if TYPE_CHECKING:
    import pandas as pd


class Dataset:
    """Questions of users, each with what is known of its user."""

    def __init__(self, found: records.Dataset) -> None:
        self.records = found

    @classmethod
    def from_lamp(cls, path: str | Path, *, task: str | Path | Task | None = None) -> Dataset:
        """A LaMP questions file with its outputs beside it, or a folder of them. `task`: if the files do not say it."""
        return cls(read_dataset(Path(path), _task(task)))

    @classmethod
    def from_table(cls, path: str | Path, *, task: str | Path | Task | None = None, **columns: Any) -> Dataset:
        """A CSV, JSON Lines, Parquet or Arrow file, or a hub data set; `columns` and the rest as for `from_frame`."""
        return cls(read_table(str(path), _columns(columns), _task(task)).usable())

    @classmethod
    def from_frame(cls, frame: pd.DataFrame, *, task: str | Path | Task | None = None, **columns: Any) -> Dataset:
        """A table with a row an item: of each user the newest rows are asked, all earlier ones are known.

        `user`, `text`, `label`, `time`, `id`: names of columns, the first three by default those words; without `time`,
        rows are taken as oldest first. `newest`: rows of a user to ask at most. `task`: a name, a YAML file, or a task;
        by default labels and text are put in a neutral form. UsageError for a missing column.
        """
        asked, there = _columns(columns), columns_of(frame)
        if missing := [name for name in asked.needed if name not in there]:
            raise UsageError(f"the table has no column {missing[0]!r}; it has {', '.join(there)}")
        return cls(rows_as_questions(rows_of(frame), "table", asked, _task(task)).usable())

    def save(self, folder: str | Path, name: str = "data") -> Path:
        """Write LaMP files into a folder, which a spec's data.path may then name."""
        write_dataset(Path(folder), name, self.records)
        return Path(folder)

    def to_frame(self) -> pd.DataFrame:
        """A row a question: id, user, text, label, known (how many items of the history count)."""
        import pandas as pd

        from personalization.data.known import known_items

        rows = [
            (q.id, q.user_id, q.text, q.gold, len(known_items(self.records.task, q))) for q in self.records.questions
        ]
        return pd.DataFrame(rows, columns=["id", "user", "text", "label", "known"])

    def __len__(self) -> int:
        return len(self.records)

    def __repr__(self) -> str:
        users = len({q.user_id for q in self.records.questions})
        return (
            f"Dataset({self.records.task}, {len(self)} questions of {users} users, {len(self.records.labels)} labels)"
        )


def _columns(given: dict[str, Any]) -> Columns:
    """As a spec's `data` would name them, and checked as there."""
    from studies.spec import parse_spec

    if odd := set(given) - {field.name for field in fields(Columns)}:
        raise UsageError(f"{min(odd)!r} is no column of a data set; give user, text, label, time, id or newest")
    data = {"table": "table", "user": "user", "text": "text", "label": "label", **given}
    told = parse_spec({"name": "table", "model": {"path": "none"}, "data": data}, "columns").data.columns
    assert told is not None
    return told


def _task(given: str | Path | Task | None) -> Task | None:
    return None if given is None else load_task(given if isinstance(given, Task) else str(given))
