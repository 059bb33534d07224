"""Reading and checking LaMP files of the tasks that classify.

Questions: a list of {"id", "input", "profile": [...]}, time-based data with "user_id" and "date" on each profile item;
without "user_id" each question is its own user. Answers: {"task", "golds": [{"id", "output"}]}, or "output" beside the
question. Official file names come in pairs `*_questions.json` / `*_outputs.json`. JSON Lines hold the merged form.
Format: github.com/LaMP-Benchmark/LaMP.

A defect is reported with file, record and field. A fatal one makes the data unusable; no record is ever dropped.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from personalization.data.json_stream import stream_records
from personalization.data.records import Dataset, HistoryItem, Question
from personalization.errors import DataError
from personalization.files import write_atomic

TASK_FIELDS = {
    "LaMP_1": ("title", "abstract"),
    "LaMP_2": ("tag", "description"),
    "LaMP_2N": ("category", "text"),
    "LaMP_3": ("score", "text"),
}
"""task -> the fields of a history item that tell it from the others."""

TEXT_FIELD = {"LaMP_1": "title", "LaMP_2": "description", "LaMP_2N": "text", "LaMP_3": "text"}
LABEL_FIELD = {"LaMP_1": None, "LaMP_2": "tag", "LaMP_2N": "category", "LaMP_3": "score"}
FIXED_LABELS = {"LaMP_1": ("[1]", "[2]"), "LaMP_3": ("1", "2", "3", "4", "5")}
_LABEL_LIST = re.compile(r"\b(tags|categories): \[([^\]]*)\]")


@dataclass(frozen=True, slots=True)
class Defect:
    """One thing wrong with the data: where, what, and whether the data can still be used.

    `record` counts from 1; 0 is the file as a whole.
    """

    file: str
    record: int
    field: str
    problem: str
    fatal: bool

    def __str__(self) -> str:
        place = f"record {self.record}: {self.field}: " if self.record else ""
        return f"{self.file}: {place}{self.problem}"


@dataclass(frozen=True)
class Checked:
    """A data set as read, with every defect found. `dataset` is None where nothing usable was found."""

    dataset: Dataset | None
    defects: tuple[Defect, ...]

    def usable(self) -> Dataset:
        """The data set; DataError with the first fatal defect and their number otherwise."""
        fatal = [defect for defect in self.defects if defect.fatal]
        if fatal or self.dataset is None:
            more = f" (and {len(fatal) - 1} more; `chamtune data check` lists them)" if len(fatal) > 1 else ""
            raise DataError(f"{fatal[0]}{more}")
        return self.dataset


class _Reader:
    """Turns raw records into questions and collects defects on the way."""

    def __init__(self) -> None:
        self.defects: list[Defect] = []
        self.golds: dict[str, str] = {}
        self.questions: dict[str, Question] = {}
        self.places: dict[str, tuple[str, int]] = {}
        self.task: str | None = None
        self.listed: tuple[str, ...] | None = None
        self.last_history: dict[str, tuple[HistoryItem, ...]] = {}

    def defect(self, file: Path, record: int, field: str, problem: str, fatal: bool = True) -> None:
        self.defects.append(Defect(str(file), record, field, problem, fatal))

    def text(self, file: Path, record: int, field: str, value: Any) -> str | None:
        """A field that must be non-empty, encodable text; a number counts as its digits."""
        if isinstance(value, int) and not isinstance(value, bool):
            return str(value)
        if not isinstance(value, str):
            kind = "missing" if value is None else f"a {type(value).__name__}"
            self.defect(file, record, field, f"{kind}, must be text")
        elif not value.strip():
            self.defect(file, record, field, "empty")
        elif "\0" in value:
            self.defect(file, record, field, "holds a null byte; remove it")
        elif not _encodable(value):
            self.defect(file, record, field, "holds half of a surrogate pair, which no tokenizer can read; repair it")
        else:
            return value
        return None

    def record_dict(self, file: Path, record: int, raw: Any) -> dict[str, Any] | None:
        if isinstance(raw, dict):
            return raw
        self.defect(file, record, "record", f"a {type(raw).__name__}, must be an object")
        return None

    def add_gold(self, file: Path, record: int, raw: Any) -> None:
        fields = self.record_dict(file, record, raw)
        if fields is None:
            return
        key = self.text(file, record, "id", fields.get("id"))
        answer = self.text(file, record, "output", fields.get("output"))
        if key is None or answer is None:
            return
        if key in self.golds:
            self.defect(file, record, "id", f"{key!r} has an answer already; ids must be unique")
            return
        self.golds[key] = answer
        self.places.setdefault(f"gold {key}", (str(file), record))

    def add_question(self, file: Path, record: int, raw: Any) -> None:
        fields = self.record_dict(file, record, raw)
        if fields is None:
            return
        key = self.text(file, record, "id", fields.get("id"))
        text = self.text(file, record, "input", fields.get("input"))
        if key is None or text is None:
            return
        if key in self.questions:
            first = self.places[key]
            self.defect(file, record, "id", f"{key!r} stands already in {first[0]} record {first[1]}")
            return
        user = key if fields.get("user_id") is None else self.text(file, record, "user_id", fields["user_id"])
        self.note_labels(file, record, text)
        history = self.history(file, record, fields.get("profile"))
        if user is None or history is None:
            return
        if history == self.last_history.get(user):
            history = self.last_history[user]
        self.last_history[user] = history
        if fields.get("output") is not None:
            self.add_gold(file, record, {"id": key, "output": fields["output"]})
        self.questions[key] = Question(key, user, text, history, None)
        self.places[key] = (str(file), record)

    def note_labels(self, file: Path, record: int, text: str) -> None:
        """Take the label list from the prompt's brackets; its order may differ between questions, its set may not."""
        match = _LABEL_LIST.search(text)
        if match is None:
            return
        labels = tuple(label.strip() for label in match[2].split(","))
        if len(set(labels)) < len(labels) or "" in labels:
            self.defect(file, record, "input", "the label list repeats a label or has an empty one")
        elif self.listed is None:
            self.listed = labels
            self.task = self.task or ("LaMP_2" if match[1] == "tags" else "LaMP_2N")
        elif set(labels) != set(self.listed):
            odd = sorted(set(labels) ^ set(self.listed))
            self.defect(file, record, "input", f"its label list differs from the first question's in {', '.join(odd)}")

    def history(self, file: Path, record: int, raw: Any) -> tuple[HistoryItem, ...] | None:
        if not isinstance(raw, list):
            self.defect(file, record, "profile", "missing or not a list; use [] for a user without history")
            return None
        if not raw:
            self.defect(file, record, "profile", "empty history; priors fall back to the global one", fatal=False)
        items = []
        for number, entry in enumerate(raw):
            item = self.history_item(file, record, f"profile[{number}]", entry)
            if item is None:
                return None
            items.append(item)
        return tuple(items)

    def history_item(self, file: Path, record: int, field: str, raw: Any) -> HistoryItem | None:
        if not isinstance(raw, dict):
            self.defect(file, record, field, f"a {type(raw).__name__}, must be an object")
            return None
        if self.task is None or not all(name in raw for name in TASK_FIELDS[self.task]):
            task = next((t for t, names in TASK_FIELDS.items() if all(name in raw for name in names)), None)
            if task is None or (self.task is not None and task != self.task):
                known = "; ".join(f"{t}: {', '.join(names)}" for t, names in TASK_FIELDS.items())
                self.defect(file, record, field, f"its fields fit no task ({known})")
                return None
            self.task = task
        text = self.text(file, record, f"{field}.{TEXT_FIELD[self.task]}", raw.get(TEXT_FIELD[self.task]))
        label: str | None = None
        if (label_field := LABEL_FIELD[self.task]) is not None:
            label = self.text(file, record, f"{field}.{label_field}", raw.get(label_field))
            if label is None:
                return None
        date = raw.get("date")
        return (
            None
            if text is None
            else HistoryItem(str(raw.get("id", "")), text, label, None if date is None else str(date))
        )

    def finish(self) -> Checked:
        """Join questions and answers and check them against the labels."""
        if not self.questions:
            if not self.defects:
                self.defects.append(Defect("data", 0, "", "no question found", True))
            return Checked(None, tuple(self.defects))
        labels = self.listed or FIXED_LABELS.get(self.task or "")
        if labels is None or self.task is None:
            place = next(iter(self.places.values()))
            problem = "the prompt has no bracketed label list and the history names no task with fixed labels"
            self.defects.append(Defect(place[0], place[1], "input", problem, True))
            return Checked(None, tuple(self.defects))
        for key, question in self.questions.items():
            gold = self.golds.get(key)
            file, record = self.places[key]
            if gold is None and self.golds:
                self.defects.append(Defect(file, record, "id", f"{key!r} has no answer in the outputs", True))
            elif gold is not None and gold not in labels:
                file, record = self.places[f"gold {key}"]
                problem = f"{gold!r} is not among the labels {', '.join(labels)}"
                self.defects.append(Defect(file, record, "output", problem, True))
            elif gold is not None:
                self.questions[key] = Question(key, question.user_id, question.text, question.history, gold)
        for key in self.golds.keys() - self.questions.keys():
            file, record = self.places[f"gold {key}"]
            self.defects.append(Defect(file, record, "id", f"{key!r} is the id of no question", True))
        self.defects.extend(_unknown_history_labels(self.questions.values(), labels, self.places))
        return Checked(Dataset(self.task, labels, tuple(self.questions.values())), tuple(self.defects))


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _unknown_history_labels(
    questions: Iterable[Question], labels: tuple[str, ...], places: dict[str, tuple[str, int]]
) -> Iterator[Defect]:
    for question in questions:
        unknown = sorted({h.label for h in question.history if h.label is not None and h.label not in labels})
        if unknown:
            problem = f"labels outside the prompt's list, not counted in priors: {', '.join(unknown)}"
            yield Defect(*places[question.id], "profile", problem, False)


def file_pairs(path: Path) -> list[tuple[Path, Path | None]]:
    """(questions, outputs) under a folder, or for one questions file; outputs is None where there are none."""
    if path.is_dir():
        found = sorted([*path.glob("*_questions.json"), *path.glob("*.jsonl")])
        if not found:
            raise DataError(f"{path}: no *_questions.json or *.jsonl in this folder")
    elif path.is_file():
        found = [path]
    else:
        raise DataError(f"{path}: no such file or folder")
    pairs: list[tuple[Path, Path | None]] = []
    for questions in found:
        outputs = questions.with_name(questions.name.replace("_questions.json", "_outputs.json"))
        pairs.append((questions, outputs if outputs != questions and outputs.is_file() else None))
    return pairs


def check_dataset(path: Path) -> Checked:
    """Read a folder or questions file and report every defect; a file that cannot be decoded ends the reading."""
    reader = _Reader()
    pairs = file_pairs(path)
    answered = any(outputs is not None for _, outputs in pairs)
    for questions, outputs in pairs:
        if answered and outputs is None and questions.suffix == ".json":
            reader.defect(questions, 0, "", "has no outputs file beside it; its questions are left out", fatal=False)
            continue
        try:
            for number, raw in stream_records(questions):
                reader.add_question(questions, number, raw)
            if outputs is not None:
                for number, raw in stream_records(outputs):
                    reader.add_gold(outputs, number, raw)
        except DataError as error:
            file, _, problem = str(error).partition(": ")
            return Checked(None, (Defect(file, 0, "", problem, True), *reader.defects))
    return reader.finish()


def read_dataset(path: Path) -> Dataset:
    """The data set under a folder or file; DataError where it cannot be used."""
    return check_dataset(path).usable()


def write_predictions(path: Path, task: str, answers: dict[str, str]) -> None:
    """Write the official LaMP predictions file."""
    golds = [{"id": key, "output": label} for key, label in answers.items()]
    write_atomic(path, json.dumps({"task": task, "golds": golds}, ensure_ascii=False) + "\n")


def write_dataset(folder: Path, name: str, dataset: Dataset) -> tuple[Path, Path]:
    """Write a data set as official, time-based LaMP files `NAME_questions.json` and `NAME_outputs.json`."""
    text_field, label_field = TEXT_FIELD[dataset.task], LABEL_FIELD[dataset.task]
    questions = []
    for q in dataset.questions:
        profile = [
            {"id": h.id, text_field: h.text, **({label_field: h.label} if label_field else {}), "date": h.date}
            for h in q.history
        ]
        questions.append({"id": q.id, "user_id": q.user_id, "input": q.text, "profile": profile})
    paths = folder / f"{name}_questions.json", folder / f"{name}_outputs.json"
    write_atomic(paths[0], json.dumps(questions, ensure_ascii=False) + "\n")
    write_predictions(paths[1], dataset.task, {q.id: q.gold for q in dataset.questions if q.gold is not None})
    return paths
