"""A table looked at, and a commented spec and task to start from.

Which column is what is told by what stands in it, never by a language: of time are those whose values are dates; the
text is the longest of the others; of what is left, and repeats itself, the label has the fewest values and the user the
most. Whoever knows better names them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from personalization.data.dates import read_date
from personalization.data.table import MANY_LABELS, Columns, plain, table_rows, task_of_columns
from personalization.errors import UsageError
from personalization.files import write_atomic
from personalization.metrics import entropy_bits

LOOKED_AT = 50_000
"""Rows that are looked at."""
DATES = 0.9
"""Share of values that are dates in a column of time."""
REPEATED = 2.0
"""Rows that a value of a column of labels or users has, on average."""


@dataclass
class Seen:
    """What stands in one column."""

    rows: int = 0
    filled: int = 0
    characters: int = 0
    dates: int = 0
    values: Counter[str] = field(default_factory=Counter)

    def add(self, value: Any) -> None:
        """Take a row's value."""
        text = "" if value is None else str(plain(value)).strip()
        self.rows += 1
        if text:
            self.filled += 1
            self.characters += len(text)
            self.dates += read_date(value if isinstance(value, int | float) else text) is not None
            self.values[text] += 1

    @property
    def length(self) -> float:
        """Characters of a value, on average."""
        return self.characters / max(1, self.filled)

    @property
    def repeats(self) -> float:
        """Rows a value, on average."""
        return self.filled / max(1, len(self.values))


def begin(place: str, named: Mapping[str, str | None], out: Path, name: str | None = None) -> dict[str, Any]:
    """Write `NAME.yaml` and `NAME-task.yaml`; JSON-able: columns, counts, files. UsageError where a column is missing.

    `named`: the columns that the user names.
    """
    seen: dict[str, Seen] = {}
    for row in islice(table_rows(place), LOOKED_AT):
        for column, value in row.items():
            seen.setdefault(column, Seen()).add(value)
    if not seen:
        raise UsageError(f"{place}: no row in it")
    columns = told_columns(place, seen, named)
    labels = seen[str(columns.label)].values
    name = name or slug(place) or "study"
    files = {"spec": out / f"{name}.yaml", "task": out / f"{name}-task.yaml"}
    if there := [path for path in files.values() if path.exists()]:
        raise UsageError(f"{there[0]} is there already; give another --name, or take it away")
    write_atomic(files["task"], _task_text(files["task"].stem.removesuffix("-task"), columns, list(labels)))
    write_atomic(files["spec"], _spec_text(files["spec"].stem, place, columns, files["task"], labels))
    return {
        "columns": {key: getattr(columns, key) for key in ("user", "text", "label", "time", "id")},
        "rows": next(iter(seen.values())).rows,
        "users": len(seen[columns.user].values),
        "labels": dict(labels.most_common()),
        **{kind: str(path) for kind, path in files.items()},
    }


def slug(place: str) -> str:
    """A name after a file's, of letters, digits and hyphens; empty where it has none."""
    return "".join(char if char.isascii() and char.isalnum() else "-" for char in Path(place).stem).strip("-")


def told_columns(place: str, seen: Mapping[str, Seen], named: Mapping[str, str | None]) -> Columns:
    """Which column is what."""
    found: dict[str, str] = {}
    for key, column in named.items():
        if column is not None and column not in seen:
            raise UsageError(f"{place}: there is no column {column!r}; there are {', '.join(seen)}")
        if column is not None:
            found[key] = column
    left = {column: what for column, what in seen.items() if column not in found.values()}
    dated = [c for c, what in left.items() if what.filled and what.dates >= DATES * what.filled and what.length >= 8]
    if "time" not in found and dated:
        found["time"] = max(dated, key=lambda column: len(left[column].values))
    left = {column: what for column, what in left.items() if column not in dated}
    if "text" not in found and left:
        found["text"] = max(left, key=lambda column: left[column].length)
        left.pop(found["text"])
    again = [c for c, what in left.items() if what.repeats >= REPEATED and len(what.values) > 1]
    if "label" not in found and again:
        few = [column for column in again if len(left[column].values) <= MANY_LABELS] or again
        found["label"] = min(few, key=lambda column: len(left[column].values))
        again = [column for column in again if column != found["label"]]
    if "user" not in found and again:
        found["user"] = max(again, key=lambda column: len(left[column].values))
    if missing := [key for key in ("user", "text", "label") if key not in found]:
        raise UsageError(
            f"{place}: it is not clear which column is the {missing[0]}; say so with --{missing[0]}. "
            f"There are {', '.join(seen)}"
        )
    unique = [c for c in left if c not in found.values() and left[c].repeats == 1 and left[c].filled == left[c].rows]
    return Columns(found["user"], (found["text"],), found["label"], found.get("time"), unique[0] if unique else None)


def _value(text: str) -> str:
    """A text as YAML on one line."""
    return yaml.safe_dump(text, allow_unicode=True, default_flow_style=True, width=10_000).splitlines()[0]


def _task_text(name: str, columns: Columns, labels: list[str]) -> str:
    said = "\n".join(f"  {_value(one)}: {_value(one)}" for one in sorted(labels))
    plainest = task_of_columns(columns)
    prompt, item = plainest.prompt, plainest.history.item
    return f"""# What is asked, in Jinja's templates; change the words, and say in your users' language what to do.
name: {_value(name)}
labels:  # as in the table: as they are said to the model
{said}
prompt: |-  # what a language model continues; {{{{history}}}} is empty, or the user's items that stand in front
{_indented(prompt)}
history:
  item: |-  # one earlier item of the user
{_indented(item, 4)}
  join: "\\n\\n"
  after: "\\n\\n"
answer: {{lead: " ", end: "\\n"}}  # what stands around the label that a language model is asked for
chat:  # with model.chat: true
  # system: You sort the tickets of our customers.
  user: |-
{_indented(prompt, 4)}
  reply: "{{{{label}}}}"
encoder: {{item: "{{{{text}}}}", label: "{{{{label}}}}"}}  # what a sentence encoder compares
"""


def _indented(text: str, by: int = 2) -> str:
    return "\n".join(f"{' ' * by}{line}" if line else "" for line in text.split("\n"))


def _spec_text(name: str, place: str, columns: Columns, task: Path, labels: Counter[str]) -> str:
    counts = np.array(list(labels.values()))
    total, entropy = counts.sum(), entropy_bits(counts)
    largest = counts.max() / total
    told = {"user": columns.user, "text": columns.text[0], "label": columns.label}
    told |= {key: value for key, value in (("time", columns.time), ("id", columns.id)) if value is not None}
    data = "\n".join(f"  {key}: {_value(str(value))}" for key, value in told.items())
    time = "" if columns.time else "  # time: COLUMN       # without it, rows are taken as oldest first\n"
    return f"""# A study of {total} rows; read `chamtune data check {name}.yaml` first, then `chamtune run {name}.yaml`.
name: {_value(name)}
data:
  table: {_value(place)}
{data}
{time}  newest: {columns.newest}            # rows of a user that are asked, at most; all earlier ones are known
  split: users         # or time: known users and their new questions
task: {_value(str(task))}
model: {{path: minilm}}  # an encoder of English; for other languages a sentence-transformers model by folder or hub
                       # id, or a language model: smollm2, a folder, hub id or GGUF file (chat: true for chat models)
chain: [prompt, head, calibration]  # with a language model also adapter, steering: [prompt, steering, calibration]
optimize: {{accuracy: maximize}}
constraints:           # the table's labels have {entropy:.2f} bits of entropy and a largest share of {largest:.2f}
  entropy: ">= {entropy / 2:.2f}"
  top1_share: "<= {min(0.95, largest + 0.25):.2f}"
space: {{template: "{{label}}"}}  # label texts to try with an encoder, e.g. ["{{label}}", "a question about {{label}}"]
sampler: tpe
warm_start: true
trials: 100
"""
