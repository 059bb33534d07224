"""Questions of users with their histories, from files or from a table."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from personalization.data import records
from personalization.data.lamp import read_dataset, write_dataset
from personalization.data.prompts import ASKED
from personalization.data.records import HistoryItem, Question
from personalization.errors import UsageError

if TYPE_CHECKING:
    import pandas as pd


class Dataset:
    """Questions of users, each with what is known of its user. `task`: one of LaMP's that classify."""

    def __init__(self, found: records.Dataset) -> None:
        self.records = found

    @classmethod
    def from_lamp(cls, path: str | Path) -> Dataset:
        """A LaMP questions file with its outputs beside it, or a folder of them."""
        return cls(read_dataset(Path(path)))

    @classmethod
    def from_frame(
        cls,
        frame: pd.DataFrame,
        *,
        user: str = "user",
        text: str = "text",
        label: str = "label",
        time: str | None = None,
        newest: int = 1,
        task: str = "LaMP_2",
        labels: Sequence[str] | None = None,
    ) -> Dataset:
        """A table with a row an item: of each user the `newest` rows are asked, all earlier ones are known.

        `user`, `text`, `label`, `time`: names of columns; without `time`, rows are taken as oldest first. `labels`: all
        that may be answered, by default those of the table. UsageError for a missing column or an unknown task.
        """
        wanted = [user, text, label, *([] if time is None else [time])]
        if missing := [name for name in wanted if name not in frame.columns]:
            raise UsageError(f"the table has no column {missing[0]!r}; it has {', '.join(map(str, frame.columns))}")
        if task not in ASKED:
            raise UsageError(f"task {task!r} cannot be made from a table; allowed are {', '.join(ASKED)}")
        known = tuple(labels or dict.fromkeys(map(str, frame[label])))
        ordered = frame if time is None else frame.sort_values(time, kind="stable")
        questions: list[Question] = []
        for name, rows in ordered.groupby(user, sort=False):
            questions += _asked(str(name), rows.to_dict("records"), (text, label, time), newest, (task, known))
        return cls(records.Dataset(task, known, tuple(questions)))

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


def _asked(
    user: str,
    rows: list[dict[Any, Any]],
    columns: tuple[str, str, str | None],
    newest: int,
    terms: tuple[str, tuple[str, ...]],
) -> list[Question]:
    """The questions of one user, whose rows come oldest first."""
    text, label, time = columns
    task, labels = terms
    items = [
        HistoryItem(f"{user}/{place}", str(row[text]), str(row[label]), None if time is None else _date(row[time]))
        for place, row in enumerate(rows)
    ]
    frame, listed = ASKED[task], ", ".join(labels)
    return [
        Question(
            items[place].id,
            user,
            frame.format(labels=listed, text=items[place].text),
            tuple(items[:place]),
            items[place].label,
            items[place].date,
        )
        for place in range(max(0, len(items) - newest), len(items))
    ]


def _date(value: Any) -> datetime:
    """A point in time in UTC, without its zone; a number is of seconds since 1970."""
    if isinstance(value, int | float):
        return datetime.fromtimestamp(value, UTC).replace(tzinfo=None)
    found: datetime = value.to_pydatetime() if hasattr(value, "to_pydatetime") else value
    if not isinstance(found, datetime):
        raise UsageError(f"time {value!r} is no date; give datetimes, or seconds since 1970")
    return found.astimezone(UTC).replace(tzinfo=None) if found.tzinfo else found
