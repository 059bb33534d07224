"""Figures of a log as places on a drawing: pure functions of the report as JSON, in SVG user units."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from studies.constraints import parse_constraint
from studies.shown.pages.drawing import HEIGHT, MARGIN, WIDTH, scaled, ticks

Row = Mapping[str, Any]
Ends = tuple[float, float]
ACROSS: Ends = (MARGIN["left"], WIDTH - MARGIN["right"])
UP: Ends = (HEIGHT - MARGIN["bottom"], MARGIN["top"])


def _path(points: Sequence[tuple[float, float | None]], across: Ends, up: Ends) -> str:
    """A line through points, broken where there is none."""
    told, on = "", False
    for x, y in points:
        if y is not None:
            told += f"{'L' if on else 'M'}{scaled(x, across, ACROSS)} {scaled(y, up, UP)}"
        on = y is not None
    return told


def _frame(across: Ends, up: Ends) -> dict[str, Any]:
    return {
        "x_ticks": [{"at": scaled(t, across, ACROSS), "said": f"{t:,.0f}"} for t in ticks(*across)],
        "y_ticks": [{"at": scaled(t, up, UP), "said": f"{t:.4g}"} for t in ticks(*up)],
        "left": ACROSS[0],
        "right": ACROSS[1],
        "top": UP[1],
        "base": UP[0],
        "width": WIDTH,
        "height": HEIGHT,
    }


def accuracy(parts: Sequence[Row]) -> dict[str, Any] | None:
    """Estimate and accuracy over the answers, and where a generation took over; None below two parts.

    `of`: answers that a point is of.
    """
    if len(parts) < 2:
        return None
    seen = [value for part in parts for value in (part["estimate"], part["accuracy"]) if value is not None]
    across, up = (0.0, float(parts[-1]["end"])), (max(0.0, min(seen) - 0.05), min(1.0, max(seen) + 0.05))
    begins = [0, *(part["end"] for part in parts[:-1])]
    middles = [(begin + part["end"]) / 2 for begin, part in zip(begins, parts, strict=True)]
    swaps = [
        {"at": scaled(begin, across, ACROSS), "generation": part["generations"][-1]}
        for before, part, begin in zip(parts, parts[1:], begins[1:], strict=False)
        if part["generations"][-1] != before["generations"][-1]
    ]
    lines = {
        name: _path(list(zip(middles, [part[name] for part in parts], strict=True)), across, up)
        for name in ("estimate", "accuracy")
    }
    return {**_frame(across, up), **lines, "swaps": swaps, "of": round(across[1] / len(parts))}


def sequence(looks: Sequence[Row], margin: float) -> dict[str, Any] | None:
    """The interval of the difference over the labels, with the margin around 0; None below two looks."""
    if len(looks) < 2:
        return None
    across = (float(looks[0]["labels"]), float(looks[-1]["labels"]))
    far = max(2 * margin, *(abs(look[end]) for look in looks for end in ("low", "high")))
    up = (-min(1.0, far), min(1.0, far))
    kept = [{key: min(max(look[key], up[0]), up[1]) for key in ("low", "high", "mean")} for look in looks]
    at = [look["labels"] for look in looks]
    low, high, mean = ([(x, one[key]) for x, one in zip(at, kept, strict=True)] for key in ("low", "high", "mean"))
    band = _path([*high, *reversed(low)], across, up) + "Z"
    places = {"zero": 0.0, "above": margin, "below": -margin}
    return {
        **_frame(across, up),
        "band": band,
        "mean": _path(mean, across, up),
        **{name: scaled(value, up, UP) for name, value in places.items()},
    }


def bound(constraint: Row) -> dict[str, float] | None:
    """A constraint's interval and bound on one line, from 0 to 100; None where it is not measured."""
    if constraint["interval"] is None:
        return None
    edge = parse_constraint(constraint["metric"], constraint["bound"]).bound
    low, high = constraint["interval"]
    least, most = min(low, edge), max(high, edge)
    room = 0.15 * (most - least) or 0.1
    ends = (least - room, most + room)
    named = {"low": low, "high": high, "value": constraint["value"], "edge": edge}
    return {name: scaled(value, ends, (0.0, 100.0)) for name, value in named.items()}


def strip(parts: Sequence[Row], constraint: Row) -> dict[str, Any] | None:
    """How a constraint's metric went, and its bound, in a box of 100 by 24; None below two values."""
    values = [part["constraints"].get(constraint["metric"]) for part in parts]
    known = [value for value in values if value is not None]
    if len(known) < 2:
        return None
    edge = parse_constraint(constraint["metric"], constraint["bound"]).bound
    up = (min(*known, edge), max(*known, edge))
    points = [
        f"{scaled(number, (0.0, float(len(values) - 1)), (0.0, 100.0))},{scaled(value, up, (22.0, 2.0))}"
        for number, value in enumerate(values)
        if value is not None
    ]
    return {"points": " ".join(points), "edge": scaled(edge, up, (22.0, 2.0))}
