"""A table looked at, and a commented spec and task to start from.

Which column is what its name says (`NAMES`), or else what stands in it, in any language: of time are those whose values
are dates; the text is the longest of the others; of what is left, and repeats itself, the label has the fewest values
and the user the most. Where numbers of values do not tell them apart, they are asked for. Whoever knows better names
them.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from personalization.data.dates import read_date
from personalization.data.table import Columns, table_rows, task_of_columns
from personalization.data.values import plain
from personalization.errors import UsageError
from personalization.files import write_atomic
from personalization.mappings import Saying
from personalization.metrics import entropy_bits
from studies.names import study_name

LOOKED_AT = 50_000
"""Rows that are looked at."""
DATES = 0.9
"""Share of values that are dates in a column of time."""
REPEATED = 2.0
"""Rows that a value of a column of labels or users has, on average."""
FEW_LABELS = 50
"""More different values than this are taken for labels only where a name says so."""
APART = 2.0
"""How many times the values of the next one a column must have to be told by their number."""
NAMES = {
    "user": ("user", "userid", "username", "customer", "customerid", "client", "author", "authorid", "reviewer"),
    "text": ("text", "body", "message", "content", "review", "question"),
    "label": ("label", "labels", "gold", "class", "category", "target", "tag"),
    "time": ("time", "date", "datetime", "timestamp", "created", "createdat"),
}
"""What columns are that are called so, the surest first; letters count, in whatever case."""


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
        value = plain(value)
        text = "" if value is None else str(value).strip()
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
    name = study_name(name or slug(place) or "study")
    seen: dict[str, Seen] = {}
    for row in islice(table_rows(place), LOOKED_AT):
        for column, value in row.items():
            seen.setdefault(column, Seen()).add(value)
    if not seen:
        raise UsageError(f"{place}: no row in it")
    columns = told_columns(place, seen, named)
    labels = seen[str(columns.label)].values
    if len(labels) < 2:
        raise UsageError(
            f"{place}: column {columns.label!r} holds fewer than two different labels; give another one with --label"
        )
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
    """Which column is what; UsageError where a named one is missing, or it is not clear."""
    found = _named(place, seen, named)
    left = {column: what for column, what in seen.items() if column not in found.values()}
    dated = [c for c, what in left.items() if what.filled and what.dates >= DATES * what.filled and what.length >= 8]
    if "time" not in found and dated:
        found["time"] = max(dated, key=lambda column: len(left[column].values))
    left = {column: what for column, what in left.items() if column not in dated}
    if "text" not in found and left:
        found["text"] = max(left, key=lambda column: left[column].length)
        left.pop(found["text"])
    _count(place, seen, left, found)
    if missing := [key for key in ("user", "text", "label") if key not in found]:
        raise UsageError(_unclear(place, missing[:1], seen))
    unique = [c for c in left if c not in found.values() and left[c].repeats == 1 and left[c].filled == left[c].rows]
    return Columns(found["user"], (found["text"],), found["label"], found.get("time"), unique[0] if unique else None)


def _named(place: str, seen: Mapping[str, Seen], named: Mapping[str, str | None]) -> dict[str, str]:
    """The columns that the user names, and those whose names say what they are."""
    found: dict[str, str] = {}
    for key, column in named.items():
        if column is not None and column not in seen:
            raise UsageError(f"{place}: there is no column {column!r}; there are {', '.join(seen)}")
        if column is not None:
            found[key] = column
    for key, known in NAMES.items():
        called = {re.sub(r"[^a-z0-9]", "", column.lower()): column for column in seen if column not in found.values()}
        there = [called[name] for name in known if name in called]
        if key == "time":
            there = [column for column in there if seen[column].dates]
        if key not in found and there:
            found[key] = there[0]
    return found


def _count(place: str, seen: Mapping[str, Seen], left: Mapping[str, Seen], found: dict[str, str]) -> None:
    """Label and user by how many values they have, where nothing else tells; UsageError where that does not."""
    sizes = {c: len(what.values) for c, what in left.items() if c not in found.values()}
    again = sorted((c for c in sizes if left[c].repeats >= REPEATED and sizes[c] > 1), key=sizes.__getitem__)
    counted = [key for key in ("label", "user") if key not in found]
    if "label" in counted and again:
        found["label"] = again.pop(0)
        if sizes[found["label"]] > FEW_LABELS or (again and sizes[again[0]] < APART * sizes[found["label"]]):
            raise UsageError(_unclear(place, counted, seen))
    if "user" in counted and again:
        found["user"] = again.pop()
        rivals = [sizes[again[-1]]] if again else []
        if "label" in found:
            rivals.append(len(seen[found["label"]].values))
        if any(sizes[found["user"]] < APART * rival for rival in rivals):
            raise UsageError(_unclear(place, counted, seen))


def _unclear(place: str, keys: Sequence[str], seen: Mapping[str, Seen]) -> str:
    told = ", ".join(f"{column} ({len(what.values)})" for column, what in seen.items())
    return (
        f"{place}: it is not clear which column is the {' and which the '.join(keys)}; say so with "
        f"{' and '.join(f'--{key}' for key in keys)}. There are, with how many different values, {told}"
    )


def _value(text: str) -> str:
    """A text as YAML on one line."""
    return yaml.dump(text, Dumper=Saying, allow_unicode=True, default_flow_style=True, width=10_000).splitlines()[0]


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
