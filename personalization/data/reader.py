"""Raw LaMP records into questions, with every defect found on the way.

What decides how the others are read (the task, the list of labels) is taken from the first record that tells it, or
given beforehand. No record is ever dropped: a fatal defect makes the data unusable.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from personalization.data.dates import read_date
from personalization.data.defects import Checked, Defect, Defects
from personalization.data.known import History
from personalization.data.labels import Listed
from personalization.data.notes import notes
from personalization.data.prompts import mismatch
from personalization.data.records import Dataset, HistoryItem, Question
from personalization.data.values import plain, wrong_text
from personalization.tasks import TASKS, Task, Terms, listed_anywhere, of_form, task

Place = tuple[Path, int]
"""File, and record from 1."""


class Reader:
    """Turns raw records into questions. `terms`: what they must be, for questions that are only to be answered.

    `task`: what they are of; without it they say it.
    """

    def __init__(self, terms: Terms | None = None, task: Task | None = None) -> None:
        self.terms, self.defects = terms, Defects()
        self.task = task if terms is None else terms.task
        self.listed = None if terms is None else tuple(terms.labels)
        self.golds: dict[str, str] = {}
        self.questions: dict[str, Question] = {}
        self.places: dict[str, Place] = {}
        self.gold_places: dict[str, Place] = {}
        self.numbers: dict[str, int] = {}
        self.refused = False
        self.last_history: dict[str, History] = {}
        self.dates, self.unread = 0, list[tuple[Place, str, Any]]()

    def defect(self, place: Place, field: str, problem: str, kind: str | None = None) -> None:
        """Note a fatal defect."""
        self.defects.add(Defect(str(place[0]), place[1], field, problem, True), kind)

    def add_gold(self, place: Place, raw: Any) -> None:
        """Take the answer to a question."""
        fields = self._object(place, raw)
        if fields is None:
            return
        key = self.text(place, "id", fields.get("id"))
        answer = self.text(place, "output", fields.get("output"), fraction=True)
        if key is None or answer is None:
            return
        if key in self.golds:
            self.defect(place, "id", f"{key!r} has an answer already; ids must be unique", "answered already")
            return
        self.golds[key], self.gold_places[key] = answer, place

    def add_question(self, place: Place, raw: Any) -> None:
        """Take a question, with its answer where it stands beside it."""
        before = len(self.questions)
        self._add_question(place, raw)
        self.refused |= len(self.questions) == before

    def _add_question(self, place: Place, raw: Any) -> None:
        fields = self._object(place, raw)
        if fields is None:
            return
        if "query" in fields and "input" not in fields:
            problem = (
                'one record a user (OPPU\'s layout); write one for each of its questions, with "id", "input", "profile"'
            )
            self.defect(place, "query", problem)
            return
        key = self.text(place, "id", fields.get("id"))
        text = self.text(place, "input", fields.get("input"))
        if key is None or text is None:
            return
        if key in self.questions:
            file, record = self.places[key]
            problem = (
                f"{key!r} stands already in {file} record {record}; ids must be unique in what is read as one data set"
            )
            self.defect(place, "id", problem, "id twice")
            return
        user = key if fields.get("user_id") is None else self.text(place, "user_id", fields["user_id"])
        history = self._history(place, fields.get("profile")) if self._asks(place, text) else None
        if user is None or history is None:
            return
        if history == self.last_history.get(user):
            history = self.last_history[user]
        self.last_history[user] = history
        if isinstance(fields["id"], int):
            self.numbers[key] = fields["id"]
        self.questions[key] = Question(key, user, text, history, date=self.date(place, "date", fields.get("date")))
        self.places[key] = place
        if fields.get("output") is not None and self.terms is None:
            self.add_gold(place, {"id": key, "output": fields["output"]})

    def _object(self, place: Place, raw: Any) -> dict[str, Any] | None:
        if isinstance(raw, dict):
            return raw
        self.defect(place, "record", f"a {type(raw).__name__}, must be an object")
        return None

    def text(self, place: Place, field: str, value: Any, fraction: bool = False) -> str | None:
        """A field that must be non-empty, encodable text; a number (`fraction`: of any kind) counts as its digits."""
        value = plain(value)
        if isinstance(value, int):
            return str(value)
        if fraction and isinstance(value, float) and math.isfinite(value):
            return str(value)
        if not isinstance(value, str):
            kind = "missing" if value is None else f"a {type(value).__name__}"
            self.defect(place, field, f"{kind}, must be text")
        elif (problem := wrong_text(value)) is not None:
            self.defect(place, field, problem)
        else:
            return value
        return None

    def date(self, place: Place, field: str, value: Any) -> Any:
        """A date in UTC; None, and a note, where it cannot be read."""
        value = plain(value)
        if value is None or value == "":
            return None
        self.dates += 1
        found = read_date(value)
        if found is None:
            self.unread.append((place, field, value))
        return found

    def asked(self, text: str) -> str:
        """A bare text as the task's question."""
        return text if self.task is None else self.task.question(text)

    def _asks(self, place: Place, text: str) -> bool:
        """Whether a prompt asks what it must, where that is known before; else what it asks is noted."""
        if self.terms is None:
            self._note_prompt(place, text)
            return True
        problem = mismatch(*self.terms, text)
        if problem is not None:
            self.defect(place, "input", problem)
        return problem is None

    def _note_prompt(self, place: Place, text: str) -> None:
        """Take task and labels from a prompt; the order of labels may differ between questions, their set may not."""
        form = of_form(text) if self.task is None or self.task.form is not None else None
        labels = None if form is None else form.listed(text)
        if form is None and (self.task is None or self.task.form is not None):
            found = listed_anywhere(text)
            form, labels = (None, None) if found is None else found
        self.task = self.task or form
        if labels is None:
            return
        if len(set(labels)) < len(labels) or "" in labels:
            self.defect(place, "input", "the label list repeats a label or has an empty one")
        elif self.listed is None:
            self.listed = labels
        elif set(labels) != set(self.listed):
            odd = sorted(set(labels) ^ set(self.listed))
            self.defect(place, "input", f"its label list differs from the first question's in {', '.join(odd)}")

    def _history(self, place: Place, raw: Any) -> History | None:
        if isinstance(raw, dict) and raw and all(isinstance(value, list) for value in raw.values()):
            columns = "an object of lists, as `datasets` writes a list of records; write a list of objects"
            self.defect(place, "profile", columns)
            return None
        if not isinstance(raw, list):
            found = f"an object with {', '.join(raw)}" if isinstance(raw, dict) else "missing or not a list"
            self.defect(place, "profile", f"{found}; must be a list of items, [] for a user without history")
            return None
        items = []
        for number, entry in enumerate(raw):
            item = self._history_item(place, f"profile[{number}]", entry)
            if item is None:
                return None
            items.append(item)
        return tuple(items)

    def _history_item(self, place: Place, field: str, raw: Any) -> HistoryItem | None:
        if not isinstance(raw, dict):
            self.defect(place, field, f"a {type(raw).__name__}, must be an object")
            return None
        if self.task is None or not _fits(self.task, raw):
            fitting = next((known for known in map(task, TASKS) if _fits(known, raw)), None)
            if fitting is None or self.task is not None:
                self._unfitting(place, field, raw, fitting)
                return None
            self.task = fitting
        names = self.task.fields
        text = self.text(place, f"{field}.{names.text}", raw.get(names.text))
        label: str | None = None
        if names.label is not None:
            label = self.text(place, f"{field}.{names.label}", raw.get(names.label), fraction=True)
            if label is None:
                return None
        if text is None:
            return None
        more = tuple((name, str(raw[name])) for name in names.also if raw.get(name) is not None)
        date = self.date(place, f"{field}.date", raw.get("date"))
        return HistoryItem(str(raw.get("id", "")), text, label, date, more)

    def _unfitting(self, place: Place, field: str, raw: Mapping[str, Any], fitting: Task | None) -> None:
        known = "; ".join(f"{name}: {', '.join(task(name).fields.needed)}" for name in TASKS)
        found = ", ".join(name for name, value in raw.items() if value is not None) or "nothing"
        if self.task is None:
            problem = f"its fields fit no task ({known}); there is {found}"
        elif fitting is None:
            needed = ", ".join(self.task.fields.needed)
            problem = f"its fields fit no task; {self.task} has {needed}, and here is {found}"
        else:
            problem = f"its fields ({found}) are those of {fitting}, and this is {self.task}"
        self.defect(place, field, problem)

    def finish(self, name: str | None, source: str) -> Checked:
        """Join questions and answers and check them against the labels. `name`: what the files call the task; `source`:
        what was read."""
        if not self.questions:
            if not self.defects:
                self.defects.add(Defect(source, 0, "", "no question found", True))
            return Checked(None, tuple(self.defects))
        labels = self.listed or self._own_labels()
        if labels is None or self.task is None:
            problem = "the prompt has no bracketed label list and the history names no task with fixed labels"
            self.defect(next(iter(self.places.values())), "input", problem)
            return Checked(None, tuple(self.defects))
        listed = Listed(labels)
        self._join_golds(listed)
        self._relabel_histories(listed)
        questions = tuple(self.questions.values())
        self._note_unread_dates()
        for question, field, problem in notes(self.task, listed, questions):
            file, record = self.places[question.id]
            self.defects.add(Defect(str(file), 0, field, f"{problem} (first: record {record}, {field})", False))
        dataset = Dataset(self.task, tuple(labels), questions)
        return Checked(dataset, tuple(self.defects), name or self.task.official or self.task.name, self.numbers)

    def _own_labels(self) -> tuple[str, ...] | None:
        """The labels that the task states; of a user's own task without any, those of the data, sorted."""
        if self.task is None:
            return None
        if self.task.labels is not None:
            return tuple(self.task.labels)
        if self.task.form is not None:
            return None
        histories = {id(q.history): q.history for q in self.questions.values()}
        found = {item.label for items in histories.values() for item in items if item.label is not None}
        labels = tuple(sorted(found | set(self.golds.values())))
        self.task = self.task.model_copy(update={"labels": {label: label for label in labels}})
        return labels

    def _join_golds(self, labels: Listed) -> None:
        if self.terms is not None:
            return
        for key, question in self.questions.items():
            if key not in self.golds:
                if self.golds:
                    self.defect(self.places[key], "id", f"{key!r} has no answer in the outputs", "unanswered")
                continue
            gold = labels.read(self.golds[key])
            if gold in labels:
                self.questions[key] = replace(question, gold=gold)
                continue
            meant = labels.in_other_case(gold)
            problem = f"{gold!r} is not among the labels {', '.join(labels.labels)}"
            if meant is not None:
                problem += f"; it differs from {meant!r} in case or space alone: write it so"
            self.defect(self.gold_places[key], "output", problem, "not a label")
        if not self.refused:
            for key in [key for key in self.golds if key not in self.questions]:
                self.defect(self.gold_places[key], "id", f"{key!r} is the id of no question", "no question")

    def _relabel_histories(self, labels: Listed) -> None:
        """Labels that are the same number as a listed one become it; users' questions go on sharing their history."""
        read: dict[int, History] = {}
        for key, question in self.questions.items():
            if id(question.history) not in read:
                read[id(question.history)] = _relabelled(question.history, labels)
            if (history := read[id(question.history)]) is not question.history:
                self.questions[key] = replace(question, history=history)

    def _note_unread_dates(self) -> None:
        if self.unread:
            (file, record), field, value = self.unread[0]
            problem = (
                f"{len(self.unread)} of {self.dates} dates cannot be read and count as missing, such as {value!r}; "
                "write 2019-07-14, 2019, July 14, 2019, or Unix seconds"
            )
            problem += f" (first: record {record}, {field})"
            self.defects.add(Defect(str(file), 0, field, problem, False))


def _fits(of: Task, raw: Mapping[str, Any]) -> bool:
    return all(raw.get(name) is not None for name in of.fields.needed)


def _relabelled(history: History, labels: Listed) -> History:
    items = [
        item if item.label is None or (label := labels.read(item.label)) == item.label else replace(item, label=label)
        for item in history
    ]
    return history if all(new is old for new, old in zip(items, history, strict=True)) else tuple(items)
