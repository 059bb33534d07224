"""What has changed in the traffic: inputs, answers, and users.

ADWIN (Bifet, Gavalda 2007; river's) keeps a window of a stream and cuts it where two parts of it have different means,
at a level that holds for the whole stream. Its streams here: characters of a text and items of the history (tested on
the log scale, and shown as the mean log undone, so that one long text is no drift), top probability, for each label
whether it was the answer (these share one level), and of the answers that got a label whether they were right and the
probability of the right label. Of users: means over five answers in a row of a user, each seen against the user's first
five, so that who asks does not matter; and user by user, whether the share of the user's most frequent answer and the
length of the texts are the same in both halves of what was asked: Fisher's exact and the Mann-Whitney test, corrected
over users by Holm.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any, NamedTuple

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
ACCURACY = "accuracy where labels came"


def _rounded(mean: float) -> float:
    return round(mean, 4)


def _counted(mean: float) -> float:
    """A mean of log(1 + count) as a count."""
    return round(float(np.expm1(mean)), 1)


def _times(mean: float) -> float:
    """A mean difference of logs as a factor."""
    return round(float(np.exp(mean)), 3)


class Stream(NamedTuple):
    """Name, rows of the traffic [m], their values [m] as they are tested, level, and how a mean of them is shown."""

    name: str
    rows: NDArray[np.int64]
    values: NDArray[np.float64]
    level: float
    shown: Callable[[float], float] = _rounded


def drifts(traffic: Traffic) -> list[dict[str, Any]]:
    """The streams that changed, JSON-able: what, when it was seen, since when it is so, mean before and after."""
    found = [_cut(traffic, stream) for stream in _streams(traffic)]
    return [one for one in found if one is not None]


def _streams(traffic: Traffic) -> list[Stream]:
    rows, top, chars = np.arange(len(traffic)), np.exp(traffic.log_probs.max(axis=1)), np.log1p(traffic.chars)
    labelled, each = traffic.labelled, LEVEL / len(traffic.labels)
    gold = traffic.gold[labelled]
    return [
        Stream("text length (characters)", rows, chars, LEVEL, _counted),
        Stream("history length (items)", rows, np.log1p(traffic.known), LEVEL, _counted),
        Stream("top probability", rows, top, LEVEL),
        *(Stream(f"label {said}", rows, 1.0 * (traffic.predicted == k), each) for k, said in enumerate(traffic.labels)),
        Stream(ACCURACY, labelled, 1.0 * (traffic.predicted[labelled] == gold), LEVEL),
        Stream("probability of the right label", labelled, np.exp(traffic.log_probs[labelled, gold]), LEVEL),
        Stream("users' top probability", *_against_their_first(traffic, top), LEVEL),
        Stream("users' text length (times their first)", *_against_their_first(traffic, chars), LEVEL, _times),
    ]


def _cut(traffic: Traffic, stream: Stream) -> dict[str, Any] | None:
    """What a stream changed from and to, None where it did not.

    ADWIN says whether; since when, the place where the sum of deviations from the mean is farthest from 0 (CUSUM).
    """
    rows, values = stream.rows, stream.values
    window: Any = ADWIN(delta=stream.level)  # type: ignore[no-untyped-call]
    at = None
    for number, value in enumerate(values):
        window.update(float(value))
        if window.drift_detected:
            at = number
    if at is None:
        return None
    begin = 1 + int(np.abs(np.cumsum(values - values.mean()))[:-1].argmax())
    return {
        "what": stream.name,
        "seen_at": traffic.times[rows[at]],
        "since": traffic.times[rows[begin]],
        "before": stream.shown(float(values[:begin].mean())),
        "after": stream.shown(float(values[begin:].mean())),
    }


def _rows_by_user(traffic: Traffic) -> dict[str, list[int]]:
    rows: dict[str, list[int]] = defaultdict(list)
    for row, (user, named) in enumerate(zip(traffic.users, traffic.named, strict=True)):
        if named:
            rows[user].append(row)
    return rows


def _against_their_first(
    traffic: Traffic, values: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Rows, and the mean of a user's block minus that of the user's first block, in the order in which blocks fill."""
    found = []
    for rows in _rows_by_user(traffic).values():
        blocks = [rows[at : at + BLOCK] for at in range(0, len(rows) - BLOCK + 1, BLOCK)]
        found += [(block[-1], float(values[block].mean() - values[blocks[0]].mean())) for block in blocks[1:]]
    ordered = sorted(found)
    return np.array([row for row, _ in ordered], dtype=np.int64), np.array([value for _, value in ordered])


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
