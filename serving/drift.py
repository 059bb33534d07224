"""What has changed in the traffic: inputs, answers, and users.

ADWIN (Bifet, Gavalda 2007; river's) keeps a window of a stream and cuts it where two parts of it have different means,
at a level that holds for the whole stream. Its streams here: log characters of a text, items of the history, top
probability, and for each label whether it was the answer (these share one level). Of users: means over five answers in
a row of a user, each seen against the user's first five, so that who asks does not matter; and user by user, whether
the share of the user's most frequent answer and the length of the texts are the same in both halves of what was asked:
Fisher's exact and the Mann-Whitney test, corrected over users by Holm.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from river.drift import ADWIN
from scipy import stats

from serving.traffic import Traffic
from tracking.significance import holm

LEVEL = 0.002
"""Of a stream, for all of it."""
BLOCK = 5
"""Answers of a user in a row that are one value."""
FEWEST = 20
"""Answers of a user who is tested alone."""
ALARM = 0.01
"""Of the tests of single users together."""


def drifts(traffic: Traffic) -> list[dict[str, Any]]:
    """The streams that changed, JSON-able: what, at which answer it was seen, mean before and after."""
    top = np.exp(traffic.log_probs.max(axis=1))
    named: list[tuple[str, Iterable[float], float]] = [
        ("text length (log)", np.log1p(traffic.chars), LEVEL),
        ("history length (log)", np.log1p(traffic.known), LEVEL),
        ("top probability", top, LEVEL),
    ]
    each = LEVEL / len(traffic.labels)
    named += [(f"label {label}", traffic.predicted == k, each) for k, label in enumerate(traffic.labels)]
    named += [
        ("users' top probability", [value for _, value in _against_their_first(traffic, top)], LEVEL),
        ("users' text length", [value for _, value in _against_their_first(traffic, np.log1p(traffic.chars))], LEVEL),
    ]
    found = [_cut(name, np.asarray(list(values), dtype=np.float64), level) for name, values, level in named]
    return [one for one in found if one is not None]


def _cut(name: str, values: NDArray[np.float64], level: float) -> dict[str, Any] | None:
    """The last change of a stream, None where there is none."""
    window: Any = ADWIN(delta=level)  # type: ignore[no-untyped-call]
    at = None
    for number, value in enumerate(values):
        window.update(float(value))
        if window.drift_detected:
            at = number
    if at is None:
        return None
    begin = max(1, len(values) - int(window.width))
    return {
        "what": name,
        "seen_at": at,
        "before": round(float(values[:begin].mean()), 4),
        "after": round(float(values[begin:].mean()), 4),
    }


def _rows_by_user(traffic: Traffic) -> dict[str, list[int]]:
    rows: dict[str, list[int]] = defaultdict(list)
    for row, (user, named) in enumerate(zip(traffic.users, traffic.named, strict=True)):
        if named:
            rows[user].append(row)
    return rows


def _against_their_first(traffic: Traffic, values: NDArray[np.float64]) -> list[tuple[int, float]]:
    """(row, mean of a user's block minus that of the user's first block), in the order in which blocks are full."""
    found = []
    for rows in _rows_by_user(traffic).values():
        blocks = [rows[at : at + BLOCK] for at in range(0, len(rows) - BLOCK + 1, BLOCK)]
        found += [(block[-1], float(values[block].mean() - values[blocks[0]].mean())) for block in blocks[1:]]
    return sorted(found)


def changed_users(traffic: Traffic) -> list[dict[str, Any]]:
    """Users whose second half differs from their first, JSON-able: user, what, before, after, p (Holm)."""
    found: list[dict[str, Any]] = []
    for user, rows in _rows_by_user(traffic).items():
        if len(rows) >= FEWEST:
            half = len(rows) // 2
            found += _halves(user, traffic, np.array(rows[:half]), np.array(rows[half:]))
    corrected = holm([one["p"] for one in found]) if found else []
    said = [{**one, "p": p} for one, p in zip(found, corrected, strict=True) if p < ALARM]
    return sorted(said, key=lambda one: (one["p"], one["user"]))


def _halves(user: str, traffic: Traffic, first: NDArray[np.int64], second: NDArray[np.int64]) -> list[dict[str, Any]]:
    usual = np.bincount(traffic.predicted[first]).argmax()
    hits = [int((traffic.predicted[rows] == usual).sum()) for rows in (first, second)]
    table = np.array([[hits[0], len(first) - hits[0]], [hits[1], len(second) - hits[1]]])
    lengths = [traffic.chars[rows] for rows in (first, second)]
    return [
        {
            "user": user,
            "what": f"label {traffic.labels[usual]}",
            "before": round(hits[0] / len(first), 3),
            "after": round(hits[1] / len(second), 3),
            "p": float(stats.fisher_exact(table).pvalue),
        },
        {
            "user": user,
            "what": "text length",
            "before": float(np.median(lengths[0])),
            "after": float(np.median(lengths[1])),
            "p": float(stats.mannwhitneyu(lengths[0], lengths[1]).pvalue)
            if len(np.unique(np.concatenate(lengths))) > 1
            else 1.0,
        },
    ]
