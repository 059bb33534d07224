"""Which values go with good trials.

A feasible trial is *good* where it is among the top share (30 %) by the objective. Of a value v that n_v of N trials
had, g_v of them good, and with r = G / N the share of good ones overall,

    ratio_raw = (g_v + 1) / (n_v - g_v + 1)
    score     = odds(rate) / odds(r),    rate ~ Beta(g_v + a r, n_v - g_v + a (1 - r)),    odds(x) = x / (1 - x)

`ratio_raw` is the ratio that histories are often shown by: of an unrelated value it tends to r / (1 - r), not to 1, and
one lucky trial gives it 2. By Bayes' rule odds(rate) / odds(r) is p(v | good) / p(v | bad), what TPE models. The prior
of a = 2 trials is centred on no relation: 3 good of 10 with r = .3 score exactly 1. The interval holds the central 95 %
of the posterior.

Discrete parameters are told by their exact values, continuous ones by quantile bins, and those of `CATEGORIES` by
names of ranges. A value is shown first if it is surest to be good: by the lower end of its interval, those that were
tried fewer than three times behind all others.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import special

from studies.insights.history import History, Parameter, is_number

if TYPE_CHECKING:
    import pandas as pd

TOP = 0.3
"""Share of feasible trials that are good."""
PRIOR = 2.0
"""Trials that the prior of no relation counts as."""
LEVEL = 0.95
HIGH, MEDIUM = 5, 3
"""Trials from which confidence is high, and medium."""
BINS, PER_BIN = 5, 4
"""Most quantile bins, and trials that each should have."""
EXACT = 24
"""Most values of a discrete number that are told apart one by one."""
CATEGORIES: dict[str, tuple[tuple[float, str], ...]] = {
    "l2": ((0.0, "none"), (0.001, "light"), (0.01, "medium"), (np.inf, "heavy")),
}
"""Word in a parameter's name -> upper ends of ranges and what they are called."""
WHOLE = 1e12
"""Numbers below which what is whole is written out."""
DIGITS = range(3, 18)
"""Of a number that is not written out: as many as tell it from the others."""
LONG = 48
"""Characters of a value that are shown at most."""
COLUMNS = (
    "parameter", "group", "value", "score", "low", "high", "ratio_raw", "confidence", "best", "mean", "count",
    "good_count",
)  # fmt: skip


class Levels(NamedTuple):
    """The values of a parameter: what each is called, and which trials had it, bool [n, V]."""

    labels: list[str]
    member: NDArray[np.bool_]


def good(gains: NDArray[np.float64], top: float = TOP) -> tuple[NDArray[np.bool_], float]:
    """Which gains, float [n], are among the top share, and from which one on.

    Where so many are equal that more than half would be good, those that are equal to the limit are not.
    """
    if not len(gains):
        return np.zeros(0, dtype=bool), float("nan")
    limit = float(np.quantile(gains, 1 - top))
    found = gains >= limit
    if found.mean() > 0.5 and (gains > limit).any():
        found = gains > limit
        limit = float(gains[found].min())
    return found, limit


def levels(parameter: Parameter, column: pd.Series) -> Levels:
    """The values of a parameter in these trials; missing ones belong to none."""
    if parameter.items:
        names = sorted({item for found in column if isinstance(found, tuple) for item in found})
        member = np.array([[isinstance(f, tuple) and name in f for name in names] for f in column], dtype=bool)
        return Levels(names, member.reshape(len(column), len(names)))
    there = column.notna().to_numpy()
    seen = list(column[there].unique())
    numbers = column.dtype.kind in "iuf" or all(is_number(value) for value in seen)
    ranges = next((found for word, found in CATEGORIES.items() if word in parameter.name.lower().split("_")), None)
    if numbers and seen and ranges is not None:
        return _ranged(column.to_numpy(dtype=float), ranges)
    if numbers and (not parameter.discrete or len(seen) > EXACT):
        return _binned(column.to_numpy(dtype=float))
    values = sorted(seen, key=lambda v: (v if numbers else 0, str(v)))
    member = np.array([(column == value).to_numpy() & there for value in values], dtype=bool)
    return Levels(said_apart(values), member.reshape(len(values), len(column)).T)


def _binned(numbers: NDArray[np.float64]) -> Levels:
    there = numbers[np.isfinite(numbers)]
    if not len(there):
        return Levels([], np.zeros((len(numbers), 0), dtype=bool))
    bins = max(1, min(BINS, len(there) // PER_BIN))
    edges = np.unique(np.quantile(there, np.linspace(0, 1, bins + 1)))
    if len(edges) == 1:
        return Levels([said(edges[0])], np.isfinite(numbers)[:, None])
    place = np.clip(np.searchsorted(edges, numbers, side="right") - 1, 0, len(edges) - 2)
    place = np.where(np.isfinite(numbers), place, -1)
    member = place[:, None] == np.arange(len(edges) - 1)
    return Levels([f"{a} to {b}" for a, b in pairwise(said_apart(edges))], member)


def _ranged(numbers: NDArray[np.float64], ranges: Sequence[tuple[float, str]]) -> Levels:
    ends = np.array([end for end, _ in ranges])
    place = np.where(np.isfinite(numbers), np.searchsorted(ends, numbers, side="left"), -1)
    kept = [i for i in range(len(ranges)) if (place == i).any()]
    return Levels([ranges[i][1] for i in kept], place[:, None] == np.array(kept))


def said(value: Any, digits: int = DIGITS[0]) -> str:
    """A value in a few characters."""
    if isinstance(value, float | np.floating):
        number = float(value)
        whole = number.is_integer() and abs(number) < WHOLE
        return str(int(number)) if whole else f"{number:.{digits}g}"
    return str(value)


def said_apart(values: Iterable[Any]) -> list[str]:
    """Different values in so few characters that no two are called alike; a text that is called like a number is
    quoted."""
    own = list(values)
    told = ([said(value, digits) for value in own] for digits in DIGITS)
    return next((names for names in told if len(set(names)) == len(own)), [repr(value) for value in own])


def short(text: str, most: int = LONG) -> str:
    """A text of at most so many characters, cut where it is longer."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def confidence(count: int) -> str:
    """How far a number of trials is to be trusted."""
    return "high" if count >= HIGH else "medium" if count >= MEDIUM else "low"


def posterior(
    counts: NDArray[np.int64], goods: NDArray[np.int64], rate: float, level: float = LEVEL
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Score and interval of values by their counts [V]; where all or no trials are good nothing is told apart."""
    if not 0 < rate < 1:
        ones = np.ones(len(counts))
        return ones, 0 * ones, ones * np.inf
    a, b = goods + PRIOR * rate, counts - goods + PRIOR * (1 - rate)
    odds = rate / (1 - rate)
    ends = [special.betaincinv(a, b, q) for q in ((1 - level) / 2, (1 + level) / 2)]
    low, high = (end / np.maximum(1 - end, 1e-12) / odds for end in ends)
    return np.asarray(a / b / odds), np.asarray(low), np.asarray(high)


def value_scores(history: History, top: float = TOP) -> pd.DataFrame:
    """A row a value of each parameter, and of each field that has several, surest to be good first; `COLUMNS`."""
    import pandas as pd

    kept = history.feasible
    gains = kept["gain"].to_numpy(dtype=float)
    values = kept["value"].to_numpy(dtype=float)
    chosen, _ = good(gains, top)
    rows: list[dict[str, Any]] = []
    for parameter in (*history.parameters.values(), *history.fields.values()):
        found = levels(parameter, kept[f"params_{parameter.name}"])
        if parameter.name in history.fields and len(found.labels) < 2:
            continue
        read = np.ones(len(kept), dtype=bool) if parameter.items else found.member.any(axis=1)
        rate = float(chosen[read].mean()) if read.any() else 0.0
        counts = found.member.sum(axis=0)
        goods = (found.member & chosen[:, None]).sum(axis=0)
        scores = posterior(counts, goods, rate)
        for place, label in enumerate(found.labels):
            mine = found.member[:, place]
            rows.append(
                {
                    "parameter": parameter.name,
                    "group": parameter.group,
                    "value": label,
                    **dict(zip(("score", "low", "high"), (float(part[place]) for part in scores), strict=True)),
                    "ratio_raw": float((goods[place] + 1) / (counts[place] - goods[place] + 1)),
                    "confidence": confidence(int(counts[place])),
                    "best": float(values[mine][np.argmax(gains[mine])]),
                    "mean": float(values[mine].mean()),
                    "count": int(counts[place]),
                    "good_count": int(goods[place]),
                }
            )
    frame = pd.DataFrame(rows, columns=list(COLUMNS))
    places = frame.assign(place=np.arange(len(frame)), unsure=frame["confidence"] == "low")
    places["first"] = places.groupby("parameter")["place"].transform("min")
    return frame.loc[places.sort_values(["first", "unsure", "low"], ascending=[True, True, False]).index]
