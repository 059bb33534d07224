"""What a data set is good for: counts, labels, trivial baselines, the smallest detectable difference, defects."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from personalization.data.lamp import check_dataset
from personalization.data.records import Dataset, Question, chronological
from personalization.data.splits import split_users
from personalization.errors import DataError
from tracking.detection import detectable_difference


def check(path: Path) -> dict[str, Any]:
    """JSON-able report. `usable` is false where a fatal defect was found; then only what is known is in it."""
    try:
        checked = check_dataset(path)
    except DataError as error:
        return {"usable": False, "defects": [{"fatal": True, "text": str(error)}]}
    fatal = any(defect.fatal for defect in checked.defects)
    report: dict[str, Any] = {
        "usable": not fatal and checked.dataset is not None,
        "defects": [{"fatal": d.fatal, "text": str(d)} for d in checked.defects],
    }
    if checked.dataset is None:
        return report
    report |= _counts(checked.dataset)
    if not fatal and all(q.gold is not None for q in checked.dataset.questions):
        report |= _golds(checked.dataset)
    return report


def _counts(dataset: Dataset) -> dict[str, Any]:
    lengths = [len(q.history) for q in dataset.questions]
    return {
        "task": dataset.task,
        "labels": list(dataset.labels),
        "questions": len(dataset),
        "users": len({q.user_id for q in dataset.questions}),
        "history_lengths": {"min": min(lengths), "median": float(np.median(lengths)), "max": max(lengths)},
    }


def _golds(dataset: Dataset) -> dict[str, Any]:
    golds = Counter(q.gold for q in dataset.questions)
    n = len(dataset)
    report: dict[str, Any] = {
        "gold_shares": {label: golds[label] / n for label in dataset.labels},
        "baselines": {
            "most frequent label": golds.most_common(1)[0][1] / n,
            "most frequent label of the history": _hits(dataset, most_frequent_label),
            "last label of the history": _hits(dataset, last_label),
        },
    }
    try:
        confirm = len(split_users(dataset).confirm)
    except DataError as error:
        report["defects_of_splits"] = str(error)
        confirm = 0
    report["confirm_questions"] = confirm
    report["detectable_difference"] = detectable_difference(confirm) if confirm else None
    return report


def _hits(dataset: Dataset, guess: Callable[[Question], str | None]) -> float:
    return sum(guess(q) == q.gold for q in dataset.questions) / len(dataset)


def most_frequent_label(question: Question) -> str | None:
    """The label that the user gave most often; of equals the one given first. None without history."""
    counts = Counter(item.label for item in question.history if item.label is not None)
    return counts.most_common(1)[0][0] if counts else None


def last_label(question: Question) -> str | None:
    """The label of the user's newest item: by date where all have one, else the last in the file."""
    items = chronological(tuple(item for item in question.history if item.label is not None))
    return items[-1].label if items else None
