"""Slices as small drawings: each trial's value (up) by one parameter (across), all on one axis of values."""

from __future__ import annotations

import math
import sys
from typing import Any

from studies.insights.history import History
from studies.insights.slices import AGES, Slice, slices
from studies.insights.values import said, short
from studies.shown.pages.drawing import axis, inner_ends, padded, scaled

Plots = dict[str, dict[str, Any]]
WIDTH, HEIGHT = 300, 136
ACROSS, UP = (40.0, 292.0), (112.0, 8.0)
ROUND = "a2.2 2.2 0 1 0 4.4 0a2.2 2.2 0 1 0-4.4 0"
"""A ring from its left end."""
FACTORS = (1, 2, 5)


def plots(history: History) -> Plots:
    """Parameter -> its drawing; none where no float holds the span."""
    found = slices(history)
    values = history.trials["value"].dropna().astype(float).tolist()
    lead = history.feasible["gain"].idxmax() if len(history.feasible) else None
    best = [] if lead is None else [float(history.trials.loc[lead, "value"])]
    if not found or not _spans(ends := inner_ends(values, best)):
        return {}
    drawn = {name: drawing(one, ends) for name, one in found.items()}
    return {name: one for name, one in drawn.items() if one is not None}


def drawing(found: Slice, ends: tuple[float, float]) -> dict[str, Any] | None:
    """A slice between two values: `ages`, a path of dots each, the first trials first; `broken`: rings; `lead`: where
    the best trial stands; ticks; `beyond`, `left`: how many dots stand at the edge, and are left out."""
    places = [math.log10(x) for x in found.at] if found.log else found.at.tolist()
    ends_x = (-0.5, len(found.columns) - 0.5) if found.columns else padded(places, 0.03)
    if not _spans(ends_x):
        return None
    held = [min(max(value, ends[0]), ends[1]) for value in found.values.tolist()]
    at = [(scaled(x, ends_x, ACROSS), scaled(y, ends, UP)) for x, y in zip(places, held, strict=True)]
    ages, broken = [list[str]() for _ in range(AGES)], list[str]()
    for (x, y), age, fine in zip(at, found.ages.tolist(), found.feasible.tolist(), strict=True):
        if fine:
            ages[age].append(f"M{x:g} {y:g}h0")
        else:
            broken.append(f"M{x - 2.2:.1f} {y:g}{ROUND}")
    lead = None if found.best is None else dict(zip(("x", "y"), at[found.best], strict=True))
    return {
        "ages": ["".join(path) for path in ages],
        "broken": "".join(broken),
        "lead": lead,
        "number": found.number,
        "setting": short(said(found.setting, 4)),
        "x_ticks": _columns(found.columns, ends_x) if found.columns else _floor(ends_x, found.log),
        "y_ticks": axis(ends, UP),
        "beyond": sum(one != other for one, other in zip(found.values.tolist(), held, strict=True)),
        "left": found.left,
        "width": WIDTH,
        "height": HEIGHT,
    }


def _spans(ends: tuple[float, float]) -> bool:
    return sys.float_info.min < ends[1] - ends[0] < math.inf


def _columns(names: list[str], ends: tuple[float, float]) -> list[dict[str, Any]]:
    """A tick a choice, its name cut to the room that it has."""
    most = max(3, 40 // len(names))
    return [{"at": scaled(place, ends, ACROSS), "said": short(name, most)} for place, name in enumerate(names)]


def _floor(ends: tuple[float, float], log: bool) -> list[dict[str, Any]]:
    """Ticks across; `log`: the ends are powers of ten, and ticks stand at 1, 2 and 5 times whole ones, or at whole ones
    where there are many."""
    if not log:
        return axis(ends, ACROSS)
    low, high = math.floor(ends[0]), math.ceil(ends[1])
    factors, step = (FACTORS, 1) if high - low <= 2 else ((1,), math.ceil((high - low) / 5))
    found = [math.log10(f) + power for power in range(low, high + 1, step) for f in factors]
    inside = [place for place in found if ends[0] <= place <= ends[1]]
    return [{"at": scaled(place, ends, ACROSS), "said": f"{10**place:.3g}"} for place in inside or ends]
