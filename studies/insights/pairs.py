"""Interactions: what two parameters explain together, beyond what each explains alone.

In the terms of `importance`: share(pair) - share(one) - share(other), less what (V_1 - 1) (V_2 - 1) / (N - 1) chance
gives. Where a sampler tried the two together more often than apart, part of this is theirs alone; the interval, over
resamples of the trials, does not know that. Two of which one tells the other are no pair. `cells` shows the strongest
pair as a map.
"""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from studies.insights.history import History
from studies.insights.importance import ENOUGH, explained, resamples, with_interval
from studies.insights.values import TOP, Levels, good, levels

COARSE = 4
"""Most values of a parameter in a pair; the rarest are left out."""
MOST = 12
"""Most parameters that are paired: those that explain most alone."""
COLUMNS = ("first", "second", "interaction", "low", "high", "trials")
CELLS = ("first", "second", "first_value", "second_value", "count", "good_count", "mean")


def _coarse(found: Levels) -> Levels:
    if len(found.labels) <= COARSE:
        return found
    kept = np.sort(np.argsort(-found.member.sum(axis=0), kind="stable")[:COARSE])
    return Levels([found.labels[i] for i in kept], found.member[:, kept])


def _both(one: NDArray[np.bool_], other: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Which trials have which two values, bool [n, V_1 V_2]."""
    return (one[:, :, None] & other[:, None, :]).reshape(len(one), -1)


def interactions(history: History, top: float = TOP) -> pd.DataFrame:
    """A row a pair of parameters, the strongest first; among feasible trials; `COLUMNS`."""
    kept = history.feasible
    chosen, _ = good(kept["gain"].to_numpy(dtype=float), top)
    weights = resamples(len(kept), 100)
    found: dict[str, Levels] = {}
    for name, parameter in history.parameters.items():
        own = _coarse(levels(parameter, kept[f"params_{name}"])) if not parameter.items else None
        if own is not None and len(own.labels) > 1 and own.member.any(axis=1).sum() >= ENOUGH:
            found[name] = own
    alone = {name: explained(own.member, chosen, weights[:1]) for name, own in found.items()}
    names = sorted(found, key=lambda name: -float(alone[name][0][0]))[:MOST]
    rows: list[dict[str, Any]] = []
    for one, other in combinations(names, 2):
        first, second = found[one].member, found[other].member
        read = first.any(axis=1) & second.any(axis=1)
        if read.sum() < 2 * ENOUGH:
            continue
        both = _both(first[read], second[read])
        free = both.any(axis=0).sum() - first[read].any(axis=0).sum() - second[read].any(axis=0).sum() + 1
        if free < 1:
            continue
        draws, hits = weights[:, read], chosen[read]
        parts = [explained(m, hits, draws) for m in (both, first[read], second[read])]
        share, chance = (parts[0][i] - parts[1][i] - parts[2][i] for i in (0, 1))
        values = dict(zip(("interaction", "low", "high"), with_interval(share, chance), strict=True))
        rows.append({"first": one, "second": other, **values, "trials": int(read.sum())})
    frame = pd.DataFrame(rows, columns=list(COLUMNS))
    return frame.sort_values(["low", "interaction"], ascending=False, kind="stable", ignore_index=True)


def cells(history: History, first: str, second: str, top: float = TOP) -> pd.DataFrame:
    """A row each two values of a pair: count, good count and mean value of the trials that have both; `CELLS`."""
    kept = history.feasible
    chosen, _ = good(kept["gain"].to_numpy(dtype=float), top)
    one, other = (levels(history.parameters[name], kept[f"params_{name}"]) for name in (first, second))
    values = kept["value"].to_numpy(dtype=float)
    rows = []
    for i, label in enumerate(one.labels):
        for j, beside in enumerate(other.labels):
            mine = one.member[:, i] & other.member[:, j]
            mean = float(values[mine].mean()) if mine.any() else None
            good_count = int(chosen[mine].sum())
            rows.append((first, second, label, beside, int(mine.sum()), good_count, mean))
    return pd.DataFrame(rows, columns=list(CELLS))
