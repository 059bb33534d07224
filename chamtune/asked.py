"""Questions from a table of the caller's: read, refused and remarked upon as files are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from chamtune.frames import columns_of, rows_of
from personalization.data.reader import Place, Reader
from personalization.data.records import HistoryItem, Question
from personalization.data.values import plain
from personalization.errors import UsageError
from personalization.tasks import Terms

SOURCE = Path("table")
"""What a defect names in the place of a file."""


def questions_of(frame: Any, terms: Terms) -> list[Question]:
    """A question a row: columns text, and where known id, user, date, history; DataError naming the first bad row."""
    if "text" not in (there := columns_of(frame)):
        raise UsageError(f"the table has no column 'text'; it has {', '.join(there)}")
    reader, ids = Reader(terms), dict[str, str]()
    for number, row in enumerate(rows_of(frame)):
        place = (SOURCE, number + 1)
        question = _question(reader, place, row)
        if question is not None:  # two rows may have one id, so the reader has them by number
            key = str(number)
            reader.questions[key], reader.places[key], ids[key] = replace(question, id=key), place, question.id
    if not reader.questions and not reader.defects:
        return []
    return [replace(question, id=ids[question.id]) for question in reader.finish(None, "questions").usable().questions]


def _question(reader: Reader, place: Place, row: Mapping[str, Any]) -> Question | None:
    assert reader.terms is not None
    task, labels = reader.terms
    named = {name: None if plain(row.get(name)) is None else reader.text(place, name, row[name]) for name in NAMES}
    text, history = reader.text(place, "text", row.get("text")), _history(reader, place, row.get("history"))
    date = reader.date(place, "date", row.get("date"))
    if text is None or history is None:
        return None
    key, user = named["id"] or str(place[1] - 1), named["user"] or f"anonymous {place[1]}"
    return Question(key, user, task.with_labels(labels).question(text), history, date=date)


NAMES = ("id", "user")
"""Columns of names that a row may be without."""


def _history(reader: Reader, place: Place, given: Any) -> tuple[HistoryItem, ...] | None:
    """A row's history, oldest first; None, and a defect, where it is none."""
    given = given.tolist() if hasattr(given, "tolist") else given
    if plain(given) is None:
        return ()
    if not isinstance(given, Sequence) or isinstance(given, str | bytes):
        kind = f"a {type(given).__name__}, must be a list of mappings with text and label"
        reader.defect(place, "history", kind)
        return None
    items = [_item(reader, place, number, item) for number, item in enumerate(given)]
    found = tuple(item for item in items if item is not None)
    return found if len(found) == len(items) else None


def _item(reader: Reader, place: Place, number: int, given: Any) -> HistoryItem | None:
    where = f"history[{number}]"
    if not isinstance(given, Mapping):
        reader.defect(place, where, f"a {type(given).__name__}, must be a mapping with text and label")
        return None
    assert reader.task is not None
    fields = reader.task.fields
    text, label = reader.text(place, f"{where}.text", given.get("text")), None
    if fields.label is not None:
        label = reader.text(place, f"{where}.label", given.get("label"), fraction=True)
    if text is None or (fields.label is not None and label is None):
        return None
    more = tuple((name, str(given[name])) for name in fields.also if plain(given.get(name)) is not None)
    return HistoryItem(f"h{number}", text, label, reader.date(place, f"{where}.date", given.get("date")), more)
