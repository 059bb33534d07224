"""What a data set is good for: counts, labels, trivial baselines, the smallest detectable difference, defects."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np

from personalization.data.records import Dataset, Question
from personalization.data.sources import Source
from personalization.errors import DataError
from personalization.methods.taste.priors import GUESSES, most_frequent_label
from personalization.tasks import Task
from tracking.detection import can_show, design_effect, detectable_difference, intraclass, spent_alpha

ALPHA = 0.05
"""What a spec spends on a confirm set, if it says nothing else."""


def check(read: Callable[[], Source]) -> dict[str, Any]:
    """JSON-able report on data, read as a study reads them.

    `usable` is false where a study would refuse them; then only what is known is in it.
    """
    try:
        source = read()
    except DataError as error:
        return {"usable": False, "defects": [_unusable(error)]}
    report: dict[str, Any] = {
        "usable": not any(checked.fatal for checked in source.read),
        "split": source.split,
        "defects": [{"fatal": d.fatal, "text": str(d), "records": d.records} for d in source.defects],
    }
    found = [checked.dataset for checked in source.read if checked.dataset is not None]
    if len(found) < len(source.read):
        return {**report, "usable": False}
    report |= _counts(found)
    if report["usable"] and all(q.gold is not None for dataset in found for q in dataset.questions):
        _tell_golds(report, source, found)
    return report


def _unusable(error: DataError) -> dict[str, Any]:
    return {"fatal": True, "text": str(error), "records": 1}


def _counts(read: list[Dataset]) -> dict[str, Any]:
    questions = [q for dataset in read for q in dataset.questions]
    lengths = [len(q.history) for q in questions]
    return {
        "task": read[0].task.name,
        "labels": list(read[0].labels),
        "questions": len(questions),
        "users": len({q.user_id for q in questions}),
        "history_lengths": {"min": min(lengths), "median": float(np.median(lengths)), "max": max(lengths)},
    }


def _tell_golds(report: dict[str, Any], source: Source, read: list[Dataset]) -> None:
    """Add what gold labels tell, and whether the data can be split."""
    whole = Dataset(read[0].task, read[0].labels, tuple(q for dataset in read for q in dataset.questions))
    golds, n = Counter(q.gold for q in whole.questions), len(whole)
    report["gold_shares"] = {label: golds[label] / n for label in whole.labels}
    report["baselines"] = {
        "most frequent label": golds.most_common(1)[0][1] / n,
        **{name: _hits(whole, guess) for name, guess in GUESSES.items()},
    }
    report |= {"confirm_questions": 0, "confirm_users": 0, "new_confirm_users": 0, "detectable_difference": None}
    try:
        splits = source.splits(warned=False)
    except DataError as error:
        report["usable"] = False
        report["defects"].append(_unusable(error))
        return
    users, worth = _worth(splits.confirm)
    report |= {"confirm_questions": len(splits.confirm), "confirm_users": users, "questions_worth": worth}
    report["new_confirm_users"] = len(splits.new_users)
    level = spent_alpha(ALPHA, 1)
    report["detectable_difference"] = detectable_difference(worth, alpha=level) if can_show(users, level) else None


def _worth(confirm: Dataset) -> tuple[int, float]:
    """Users, and questions of different users that tell as much as these; how alike a user's are, a guess tells."""
    names, owners = np.unique([q.user_id for q in confirm.questions], return_inverse=True)
    hits = np.array([most_frequent_label(confirm.task, q) == q.gold for q in confirm.questions], dtype=np.int64)
    return len(names), len(confirm) / design_effect(intraclass(hits, owners), owners)


def _hits(dataset: Dataset, guess: Callable[[Task, Question], str | None]) -> float:
    return sum(guess(dataset.task, q) == q.gold for q in dataset.questions) / len(dataset)
