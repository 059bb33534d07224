"""A table with a row an item, as questions: of each user the newest rows are asked, all earlier ones are known.

    question i of user u = row i, history = the rows of u before it, in order of time, else of the table

CSV (any of , ; | and tab between columns), JSON Lines, Parquet, Arrow, a folder that `datasets` saved, or a data set of
the hub; rows are read one after another. At most `newest` rows of a user are asked, and at most half of them, rounded
up. A row without a label has nothing to teach: it is left out, and where a deployment answers a table it is what is
asked; a table without columns of label, time or id can be answered, too. Two rows of the same time stand as in it; rows
without a time are the oldest, but where one without a label is asked, all dated rows are known.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from io import StringIO
from pathlib import Path
from typing import Any

from personalization.data.defects import Checked, Defect
from personalization.data.json_stream import stream_records
from personalization.data.reader import Place, Reader
from personalization.data.records import HistoryItem, Question
from personalization.data.values import plain
from personalization.errors import DataError, UnavailableError
from personalization.files import write_atomic
from personalization.tasks import Task, Terms
from personalization.tasks.task import HistoryWording

NEWEST = 5
"""Rows of a user that are asked."""
MANY_LABELS = 200
"""More different labels than this look like a column of texts."""
SEPARATORS = ",;\t|"
SUFFIXES = (".csv", ".tsv", ".parquet", ".arrow", ".feather", ".jsonl", ".ndjson")
"""Of files that are tables."""


@dataclass(frozen=True)
class Columns:
    """Names of a table's columns. `text`: several are read one below the other; `newest`: rows of a user to ask."""

    user: str
    text: tuple[str, ...]
    label: str | None
    time: str | None = None
    id: str | None = None
    newest: int = NEWEST

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> Columns:
        """As a spec's `data` names them."""
        text = told["text"]
        named: dict[str, Any] = {name: told.get(name) for name in ("user", "label", "time", "id")}
        return cls(text=(text,) if isinstance(text, str) else tuple(text), newest=told.get("newest") or NEWEST, **named)

    @property
    def asked(self) -> tuple[str, ...]:
        """Those without which nothing can be asked."""
        return (self.user, *self.text)

    @property
    def needed(self) -> tuple[str, ...]:
        """All that are named."""
        return tuple(name for name in (*self.asked, self.label, self.time, self.id) if name is not None)


def task_of_columns(columns: Columns) -> Task:
    """A task in no language: the labels, the text, and the label column's name, behind which the answer stands."""
    label = columns.label or "label"
    return Task(
        name=label,
        prompt=f'{{{{history}}}}{{{{labels | join(", ")}}}}\n\n{{{{text}}}}\n{label}:',
        history=HistoryWording(item=f"{{{{text}}}}\n{label}: {{{{label}}}}"),
    )


def read_table(place: str, columns: Columns, task: Task | None = None, terms: Terms | None = None) -> Checked:
    """A table's questions with every defect; `terms`: of a deployment, which answers the rows that have no label, and
    needs no more than the columns of user and text."""
    rows = table_rows(place, columns.needed if terms is None else columns.asked, columns.needed)
    try:
        return rows_as_questions(rows, place, columns, task, terms)
    except DataError as error:
        problem = str(error).removeprefix(f"{place}: ")
        return Checked(None, (Defect(place, 0, "", problem, True),))


def rows_as_questions(
    rows: Iterator[Mapping[str, Any]], source: str, columns: Columns, task: Task | None, terms: Terms | None = None
) -> Checked:
    """The same from rows that are at hand; `source` is what defects name."""
    reader = Reader(terms, task or task_of_columns(columns))
    users: dict[str, list[tuple[Place, HistoryItem]]] = {}
    for number, raw in enumerate(rows, 1):
        place = (Path(source), number)
        user = reader.text(place, columns.user, raw.get(columns.user))
        item = _item(reader, place, raw, columns)
        if user is not None and item is not None:
            users.setdefault(user, []).append((place, item))
        else:
            reader.refused = True
    if terms is None and reader.task is not None and reader.task.labels is None:
        found = sorted({item.label for rows in users.values() for _, item in rows if item.label is not None})
        reader.task, reader.listed = reader.task.with_labels(found), tuple(found)
    unlabelled = _ask(reader, users, columns, terms)
    if problem := _left_out(unlabelled, reader, users):
        reader.defects.add(Defect(source, 0, str(columns.label), problem, False))
    checked = reader.finish(None, source)
    if checked.dataset is not None and len(checked.dataset.labels) > MANY_LABELS:
        problem = f"{len(checked.dataset.labels)} different labels, each of which is scored for every question"
        return Checked(
            checked.dataset,
            (*checked.defects, Defect(source, 0, columns.label or "", problem, False)),
            checked.name,
            checked.numbers,
        )
    return checked


def _item(reader: Reader, place: Place, raw: Mapping[str, Any], columns: Columns) -> HistoryItem | None:
    parts = [reader.text(place, name, raw.get(name)) for name in columns.text[:1]]
    parts += [str(plain(raw[name])) for name in columns.text[1:] if plain(raw.get(name)) is not None]
    label = None if columns.label is None else plain(raw.get(columns.label))
    if label is not None and str(label).strip():
        label = reader.text(place, str(columns.label), label, fraction=True)
        if label is None:
            return None
    date = None if columns.time is None else reader.date(place, columns.time, raw.get(columns.time))
    named = None if reader.terms is not None and columns.id not in raw else columns.id
    key = str(place[1]) if named is None else reader.text(place, named, raw.get(named))
    if parts[0] is None or key is None:
        return None
    return HistoryItem(key, "\n".join(part for part in parts if part), label or None, date)


def _ask(
    reader: Reader, users: Mapping[str, list[tuple[Place, HistoryItem]]], columns: Columns, terms: Terms | None
) -> int:
    """Add the questions to a reader; how many rows have no label."""
    unlabelled = 0
    open_rows = terms is not None and any(item.label is None for rows in users.values() for _, item in rows)
    for user, rows in users.items():
        rows.sort(key=lambda row: row[1].date or datetime.min)
        known = [row for row in rows if row[1].label is not None]
        unlabelled += len(rows) - len(known)
        asked = [row for row in rows if row[1].label is None] if open_rows else known[-_asked(len(known), columns) :]
        for place, item in asked:
            _add(reader, place, user, item, known)
    return unlabelled


def _asked(rows: int, columns: Columns) -> int:
    return max(1, min(columns.newest, (rows + 1) // 2))


def _left_out(unlabelled: int, reader: Reader, users: Mapping[str, Sequence[Any]]) -> str | None:
    """Which rows are not asked, and why, where that is not what a reader expects."""
    if reader.terms is None:
        return f"{unlabelled} rows have no label and are left out" if unlabelled else None
    rows = sum(map(len, users.values()))
    if unlabelled or not rows:
        return None
    return (
        f"every row has a label, so {len(reader.questions)} of {rows} rows are asked, the newest of each user, and the "
        "earlier ones are known; to ask others, leave their labels empty"
    )


def _add(reader: Reader, place: Place, user: str, item: HistoryItem, known: list[tuple[Place, HistoryItem]]) -> None:
    """The question of one row: what is known are the labelled rows before it."""
    if item.id in reader.questions:
        reader.defect(place, "id", f"{item.id!r} stands already in record {reader.places[item.id][1]}; ids are unique")
        return
    now = (item.date or datetime.min, place[1])
    timeless = item.date is None and item.label is None
    history = tuple(
        one for at, one in known if (one.date or datetime.min, at[1]) < now or (timeless and one.date is not None)
    )
    text = reader.asked(item.text)
    reader.questions[item.id] = Question(item.id, user, text, history, date=item.date)
    reader.places[item.id] = place
    if item.label is not None and reader.terms is None:
        reader.golds[item.id], reader.gold_places[item.id] = item.label, place


def write_table(path: Path, answers: Sequence[tuple[str, str, str, float]]) -> None:
    """Write answers (id, user, label, log-probability) as CSV."""
    file = StringIO(newline="")
    rows = csv.writer(file)
    rows.writerow(("id", "user", "label", "probability"))
    rows.writerows((key, user, label, f"{math.exp(value):.6g}") for key, user, label, value in answers)
    write_atomic(path, file.getvalue())


def is_table(path: Path) -> bool:
    """Whether a file is a table by its name, or a folder is one of `datasets`."""
    return path.suffix.lower() in SUFFIXES or (path.is_dir() and (path / "state.json").is_file())


def table_rows(place: str, needed: tuple[str, ...] = (), wanted: tuple[str, ...] = ()) -> Iterator[Mapping[str, Any]]:
    """The rows of a table, one after another, with these columns or all; DataError where one is missing.

    `place`: a file, a folder that `datasets` saved, or a hub id, perhaps with a split behind a colon; `wanted`: further
    columns, where they are there.
    """
    path = Path(place)
    if path.is_file():
        yield from _of_file(path, needed, wanted)
    elif path.is_dir():
        yield from _of_datasets(place, needed, saved=True)
    elif place.count("/") == 1 and not place.startswith((".", "/", "~")) and not path.parent.is_dir():
        yield from _of_datasets(place, needed, saved=False)
    else:
        raise DataError(f"{place}: no such table")


def _of_file(path: Path, needed: tuple[str, ...], wanted: tuple[str, ...]) -> Iterator[Mapping[str, Any]]:
    suffix = path.suffix.lower()
    if suffix in (".jsonl", ".ndjson", ".json"):
        for number, raw in stream_records(path, {}):
            if not isinstance(raw, dict):
                raise DataError(f"{path}: record {number} is a {type(raw).__name__}, must be an object")
            if number == 1:
                _check_columns(path, needed, list(raw))
            yield raw
    elif suffix in (".csv", ".tsv", ".txt"):
        yield from csv_rows(path, needed)
    elif suffix in (".parquet", ".arrow", ".feather"):
        yield from _of_arrow(path, needed, wanted)
    else:
        raise DataError(f"{path}: not a table that is read here; give one of {', '.join(SUFFIXES)}")


def csv_rows(path: Path, needed: tuple[str, ...] = ()) -> Iterator[Mapping[str, Any]]:
    """The rows of a CSV file, with any of `SEPARATORS`, as `table_rows` gives them."""
    csv.field_size_limit(1 << 30)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            header = file.readline()
            separator = max(SEPARATORS, key=header.count)
            file.seek(0)
            rows = csv.DictReader(file, delimiter=separator, strict=True)
            _check_columns(path, needed, list(rows.fieldnames or ()))
            for row in rows:
                if None in row:
                    raise DataError(f"{path}: line {rows.line_num} has more values than the header has columns")
                yield row
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: byte {error.start} is not UTF-8; save it as UTF-8") from None
    except csv.Error as error:
        raise DataError(f"{path}: not CSV: {error}; put quotes around a text with quotes, and double those") from None


def _of_arrow(path: Path, needed: tuple[str, ...], wanted: tuple[str, ...]) -> Iterator[Mapping[str, Any]]:
    import pyarrow
    import pyarrow.dataset
    import pyarrow.fs

    suffix = path.suffix.lower()
    try:
        kind = pyarrow.dataset.ParquetFileFormat() if suffix == ".parquet" else pyarrow.dataset.IpcFileFormat()
        _check_columns(path, needed, kind.inspect(str(path), pyarrow.fs.LocalFileSystem()).names)
        found = pyarrow.dataset.dataset(path, format=kind)
        read = [name for name in dict.fromkeys((*needed, *wanted)) if name in found.schema.names]
        for batch in found.to_batches(columns=read if needed else None, batch_size=1024):
            yield from batch.to_pylist()
    except pyarrow.ArrowInvalid as error:
        raise DataError(f"{path}: not {suffix[1:]}: {str(error).splitlines()[0]}") from None


def _of_datasets(place: str, needed: tuple[str, ...], saved: bool) -> Iterator[Mapping[str, Any]]:
    import datasets

    name, _, part = place.partition(":")
    try:
        found = datasets.load_from_disk(place) if saved else datasets.load_dataset(name, split=part or "train")
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        kind = DataError if saved else UnavailableError
        raise kind(f"{place}: cannot be read as a data set: {str(error).splitlines()[0]}") from None
    if isinstance(found, datasets.DatasetDict):
        raise DataError(f"{place}: holds several parts; give one of {', '.join(f'{place}/{part}' for part in found)}")
    _check_columns(place, needed, found.column_names)
    yield from found


def _check_columns(place: str | Path, needed: tuple[str, ...], there: list[str]) -> None:
    """DataError where a column is missing, or stands twice; columns without a name may, where others are asked for."""
    twice = [name for at, name in enumerate(there) if name in there[:at] and (name or not needed)]
    if twice:
        first, second, *_ = (at for at, name in enumerate(there, 1) if name == twice[0])
        raise DataError(f"{place}: columns {first} and {second} are both called {twice[0]!r}; give each its own name")
    if missing := [name for name in needed if name not in there]:
        raise DataError(f"{place}: there is no column {missing[0]!r}; there are {', '.join(map(str, there))}")
