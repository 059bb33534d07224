"""Logged questions, answered again by another config."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from personalization.data.dates import read_date
from personalization.data.records import HistoryItem, Question
from personalization.deployment import Deployment, Prediction
from personalization.errors import DataError
from personalization.files import atomic_file
from personalization.tasks.task import Fields
from serving.lines import HASHED, Line
from serving.log import placed
from serving.traffic import Traffic, read_traffic

TOGETHER = 256
"""Questions that are answered at a time."""


def replay(folder: Path, deployment: Deployment, out: Path | None = None) -> dict[str, Any]:
    """Answer a log's questions; JSON-able: answers, changed, and of those with a label both accuracies.

    `out`: JSON Lines with a line an answer. DataError where the log keeps no texts, or is of another task.
    """
    traffic = read_traffic(folder)
    _refuse_other_labels(folder, deployment, traffic)
    found = answers_of(folder, deployment, traffic.requests)
    columns = {label: k for k, label in enumerate(traffic.labels)}
    ours = np.array([columns[one.label] for one in found])
    if out is not None:
        with atomic_file(out) as file:
            for one in found:
                line = {"request": one.id, "label": one.label, "log_probs": one.log_probs, "prior": one.prior_mode}
                file.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
    rows = traffic.labelled
    return {
        "answers": len(found),
        "changed": round(float((ours != traffic.predicted).mean()), 4),
        "labelled": len(rows),
        "accuracy_then": _share(traffic.predicted[rows] == traffic.gold[rows]),
        "accuracy_now": _share(ours[rows] == traffic.gold[rows]),
    }


def _refuse_other_labels(folder: Path, deployment: Deployment, traffic: Traffic) -> None:
    if set(traffic.labels) != set(deployment.terms.labels):
        raise DataError(f"{folder}: its labels are not those of the config")


def _share(right: Any) -> float | None:
    return round(float(right.mean()), 4) if len(right) else None


def answers_of(folder: Path, deployment: Deployment, wanted: Iterable[str]) -> list[Prediction]:
    """The answers to these requests, in the order of the log."""
    asked, chosen = list[Question](), set(wanted)
    found: list[Prediction] = []
    for question in questions(folder, deployment.terms.task.fields):
        if question.id in chosen:
            asked.append(question)
        if len(asked) == TOGETHER:
            found += deployment.predict(asked)
            asked = []
    return found + deployment.predict(asked)


def questions(folder: Path, fields: Fields) -> Iterator[Question]:
    """A log's questions, by the names of their requests; DataError where it keeps no texts."""
    for path, number, line in placed(folder, "questions"):
        if line["input"].startswith(HASHED):
            raise DataError(f"{folder}: request {line['request']} has no text; `chamtune serve --texts` keeps them")
        if not all(isinstance(raw, dict) and {"id", fields.text} <= set(raw) for raw in line["profile"]):
            raise DataError(f"{path}: line {number} has a history item without id or {fields.text}")
        history = tuple(_item(raw, fields) for raw in line["profile"])
        yield Question(line["request"], line["user_id"], line["input"], history, date=read_date(line.get("date")))


def _item(raw: Line, fields: Fields) -> HistoryItem:
    more = tuple(sorted((name, raw[name]) for name in fields.also if name in raw))
    label = None if fields.label is None else raw.get(fields.label)
    return HistoryItem(raw["id"], raw[fields.text], label, read_date(raw.get("date")), more)


def shadowed(folder: Path, deployment: Deployment, traffic: Traffic) -> dict[int, np.ndarray[Any, Any]]:
    """A config's answers to the labelled questions of a log: row -> log-probabilities, float [K]."""
    _refuse_other_labels(folder, deployment, traffic)
    asked = traffic.requests[traffic.labelled]
    found, place = answers_of(folder, deployment, asked), dict(zip(asked, traffic.labelled.tolist(), strict=True))
    return {place[one.id]: np.array([one.log_probs[label] for label in traffic.labels]) for one in found}
