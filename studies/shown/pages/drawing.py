"""Numbers as places on a drawing: pure functions of the insights as JSON, in SVG user units. Nothing is styled here."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from studies.insights.importance import FIXED, SCARCE, UNREAD

Row = Mapping[str, Any]
WIDTH, HEIGHT = 640, 220
MARGIN = {"left": 68, "right": 16, "top": 12, "bottom": 34}
UNITS = (("days", 86400), ("hours", 3600), ("minutes", 60), ("seconds", 1))
REACH = 8.0
"""Scores are drawn from 1 / REACH to REACH."""


def place(score: float | None) -> float:
    """Where a score stands on its axis, from 0 to 100; 1 is in the middle, and what is beyond the axis at its end."""
    if score is None:
        return 100.0
    bounded = min(max(score, 1 / REACH), REACH)
    return round(50 + 50 * math.log(bounded) / math.log(REACH), 2)


def bar(row: Row) -> dict[str, float]:
    """The bar of a score: from 1 to the score, its whiskers, all from 0 to 100."""
    at, low, high = (place(row[name]) for name in ("score", "low", "high"))
    return {"x": min(50.0, at), "width": round(abs(at - 50), 2), "low": low, "high": high, "at": at}


def in_order(rows: Sequence[Row]) -> list[Row]:
    """Values that are numbers, or ranges of them, from the lowest to the highest, so that a peak is seen; others as
    they come."""
    try:
        return sorted(rows, key=lambda row: float(str(row["value"]).split(" to ")[0]))
    except ValueError:
        return list(rows)


def scaled(value: float, ends: tuple[float, float], places: tuple[float, float]) -> float:
    """Where a value stands between two places, as it stands between its ends."""
    span = ends[1] - ends[0] or 1.0
    return round(places[0] + (value - ends[0]) / span * (places[1] - places[0]), 1)


def ticks(low: float, high: float, count: int = 4, whole: bool = False) -> list[float]:
    """Round numbers between two, at least three of them unless the two are one; `whole`: no fractions, maybe fewer."""
    span = high - low
    if span <= 0:
        return [low]
    rough = span / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * m for m in (1, 2, 5, 10) if power * m >= rough)
    step = max(1.0, step) if whole else step
    first = math.ceil(low / step) * step
    digits = max(10, 2 - math.floor(math.log10(step)))
    found = [round(first + i * step, digits) for i in range(int((high - first) / step + 1e-9) + 1)]
    return found if len(found) > 2 or count > 8 or (whole and step == 1) else ticks(low, high, count + 1, whole)


def axis(ends: tuple[float, float], places: tuple[float, float], whole: bool = False) -> list[dict[str, Any]]:
    """Where the ticks between two ends stand, with texts that differ."""
    found = ticks(*ends, whole=whole)
    texts = ([f"{tick:.{digits}g}" for tick in found] for digits in range(4, 12))
    said = next((told for told in texts if len(set(told)) == len(found)), [str(tick) for tick in found])
    return [{"at": scaled(tick, ends, places), "said": text} for tick, text in zip(found, said, strict=True)]


def waterfall(path: Row) -> dict[str, Any]:
    """Bars from the baseline to the winner, each step standing on the one before, with its interval."""
    level, bars = 0.0, list[dict[str, Any]]()
    for step in path["steps"]:
        ends = {"to": level + step["gain"], "least": level + step["low"], "most": level + step["high"]}
        bars.append({**step, "from": level, **ends})
        level += step["gain"]
    whole = {key: path[key] for key in ("gain", "low", "high")} | {"step": "all", "values": {}, "droppable": False}
    bars.append({**whole, "whole": True, "from": 0.0, "to": level, "least": path["low"], "most": path["high"]})
    every = [0.0, *(b[key] for b in bars for key in ("from", "to", "least", "most"))]
    low, high = min(every), max(every)
    row, left = 46, 8
    for number, one in enumerate(bars):
        at = {key: scaled(one[key], (low, high), (left, WIDTH - 90)) for key in ("from", "to", "least", "most")}
        one |= {
            "y": 4 + number * row,
            "x": min(at["from"], at["to"]),
            "width": max(1.5, abs(at["to"] - at["from"])),
            "x_low": at["least"],
            "x_high": at["most"],
            "end": at["to"],
        }
    zero = scaled(0.0, (low, high), (left, WIDTH - 90))
    return {"bars": bars, "height": 8 + len(bars) * row, "width": WIDTH, "zero": zero, "row": row, "left": left}


def padded(values: Sequence[float], share: float) -> tuple[float, float]:
    """The ends of values with room of a share of their span on both sides; of one value with room all the same."""
    low, high = min(values), max(values)
    room = share * (high - low) if high > low else 0.05 * abs(low) or 1.0
    return low - room, high + room


def inner_ends(values: Sequence[float], always: Sequence[float]) -> tuple[float, float]:
    """The ends of an axis that holds some values always, and of others all but the outermost twentieth on each side."""
    inner, cut = sorted(values), len(values) // 20
    return padded([*always, *inner[cut : len(inner) - cut]], 0.06)


def curve(
    points: Sequence[Row],
    across: str,
    up: str,
    mark: float | None = None,
    left: bool = False,
    dots: Sequence[Row] = (),
) -> dict[str, Any] | None:
    """A stair through points, with ticks and a marked place; None where there is nothing to draw, or no float holds the
    span.

    The points are in the order in which `up` gets better; each level holds until the next point, the last one to the
    end of the axis, which is the left one where larger numbers bind (`left`). `dots` (with value and feasible) stand
    beside a stair, across by the same; the outermost twentieth of them has no say in the axis, and stands at its end.
    """
    known = [(float(p[across]), float(p[up])) for p in points if p[across] is not None and p[up] is not None]
    if len(known) < 2:
        return None
    seen = [(float(d[across]), float(d["value"]), bool(d["feasible"])) for d in dots if d["value"] is not None]
    xs = [x for x, _ in known] + ([mark] if mark is not None else []) + [x for x, _, _ in seen]
    ends_y = inner_ends([y for _, y, _ in seen], [y for _, y in known])
    ends_x = padded(xs, 0.04 if mark is not None else 0.02)
    if not all(sys.float_info.min < high - low < math.inf for low, high in (ends_x, ends_y)):
        return None
    span_x, span_y = (MARGIN["left"], WIDTH - MARGIN["right"]), (HEIGHT - MARGIN["bottom"], MARGIN["top"])
    at = [(scaled(x, ends_x, span_x), scaled(y, ends_y, span_y)) for x, y in known]
    last = at[-1][0] if dots else span_x[0] if left else span_x[1]
    line = f"M{at[0][0]} {at[0][1]}" + "".join(f"H{x}V{y}" for x, y in at[1:]) + f"H{last}"
    bounded = [(x, min(max(y, ends_y[0]), ends_y[1]), fine) for x, y, fine in seen]
    return {
        "line": line,
        "points": [{"x": x, "y": y, "across": a, "up": u} for (x, y), (a, u) in zip(at, known, strict=True)],
        "dots": [
            {"x": scaled(x, ends_x, span_x), "y": scaled(y, ends_y, span_y), "feasible": fine} for x, y, fine in bounded
        ],
        "beyond": sum(one[1] != other[1] for one, other in zip(seen, bounded, strict=True)),
        "mark": None if mark is None else scaled(mark, ends_x, span_x),
        "x_ticks": axis(ends_x, span_x, across == "number"),
        "y_ticks": axis(ends_y, span_y),
        "width": WIDTH,
        "height": HEIGHT,
    }


def by_time(found: Row) -> dict[str, Any] | None:
    """The course of a study by the time that its trials ran, and the `unit` of it; None where that is not known."""
    whole = max((row["seconds"] for row in (*found["course"], *found["points"])), default=0.0)
    if whole < 1:
        return None
    unit, size = next(((name, size) for name, size in UNITS if whole >= 2 * size), UNITS[-1])
    course, dots = ([{**row, "time": row["seconds"] / size} for row in found[name]] for name in ("course", "points"))
    drawn = curve(course, "time", "best", dots=dots)
    return None if drawn is None else {**drawn, "unit": unit}


def unjudged(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Parameters whose importance was not estimated, a row a reason: why, and each one's name, value and trials."""
    found: dict[str, list[dict[str, Any]]] = {why: [] for why in (FIXED, UNREAD, SCARCE)}
    for row in rows:
        if row["unjudged"]:
            found[row["unjudged"]].append({"name": row["parameter"], "only": row["only"], "trials": row["trials"]})
    return [{"why": why, "parameters": parameters} for why, parameters in found.items() if parameters]


def heat(pairs: Sequence[Row]) -> dict[str, Any] | None:
    """A triangle of squares, the stronger an interaction the fuller; None without pairs."""
    if not pairs:
        return None
    names = list(dict.fromkeys(name for pair in pairs for name in (pair["first"], pair["second"])))
    strongest = max(0.02, *(pair["interaction"] for pair in pairs))
    side, left = max(22, min(44, 420 // len(names))), 150
    squares = []
    for pair in pairs:
        j, i = sorted((names.index(pair["first"]), names.index(pair["second"])))
        squares.append(
            {
                **pair,
                "x": left + j * side,
                "y": 10 + (i - 1) * side,
                "fill": round(pair["interaction"] / strongest, 3),
                "said": f"{pair['interaction']:.2f}" if pair["interaction"] >= 0.005 else "",
            }
        )
    labels = [{"name": name, "at": 10 + (i - 1) * side + side / 2} for i, name in enumerate(names) if i]
    below = [{"name": name, "at": left + i * side + side / 2} for i, name in enumerate(names[:-1])]
    base = 10 + (len(names) - 1) * side
    height = base + 16 + 7 * max(len(name[:18]) for name in names[:-1])
    return {"squares": squares, "rows": labels, "columns": below, "side": side, "base": base,
            "height": height, "width": left + len(names) * side, "left": left}  # fmt: skip


def table_of(cells: Sequence[Row]) -> dict[str, Any] | None:
    """The strongest pair as rows and columns; each cell with its share of good trials."""
    if not cells:
        return None
    rows, columns = (list(dict.fromkeys(cell[name] for cell in cells)) for name in ("first_value", "second_value"))
    grid = {(cell["first_value"], cell["second_value"]): cell for cell in cells}
    return {"first": cells[0]["first"], "second": cells[0]["second"], "columns": columns,
            "rows": [{"name": row, "cells": [grid[row, column] for column in columns]} for row in rows]}  # fmt: skip


def trend_lines(trends: Sequence[Row]) -> list[dict[str, Any]]:
    """For each parameter the runs of equal leading values, in percent of all trials."""
    found: dict[str, list[Row]] = {}
    for row in trends:
        found.setdefault(row["parameter"], []).append(row)
    whole = max((row["trials"] for row in trends), default=1)
    lines = []
    for name, rows in found.items():
        parts, before = list[dict[str, Any]](), 0
        for row in rows:
            x, width = 100 * before / whole, 100 * (row["trials"] - before) / whole
            if parts and parts[-1]["value"] == row["value"]:
                parts[-1]["width"] = round(parts[-1]["width"] + width, 2)
                parts[-1] |= {"score": row["score"], "until": row["trials"], "confidence": row["confidence"]}
            else:
                parts.append({"value": row["value"], "x": round(x, 2), "width": round(width, 2), "score": row["score"],
                              "from": before + 1, "until": row["trials"], "confidence": row["confidence"]})  # fmt: skip
            before = row["trials"]
        shades = list(dict.fromkeys(part["value"] for part in parts))
        for part in parts:
            part["shade"] = shades.index(part["value"]) % 5
        lines.append({"parameter": name, "group": rows[0]["group"], "parts": parts, "changes": len(parts) - 1})
    return lines


def rows_of(entries: Sequence[Row]) -> list[dict[str, Any]]:
    """Cards in rows: two rows where the fields of a group compare two things (`buyer_...`, `product_...`)."""
    stems: dict[str, set[str]] = {}
    for entry in entries:
        head, _, stem = entry["field"].partition("_")
        stems.setdefault(head, set()).add(stem)
    pairs = [(a, b) for a in stems for b in stems if a < b and len((stems[a] & stems[b]) - {""}) >= 2]
    rows: dict[str, list[Row]] = {}
    for entry in entries:
        head = entry["field"].partition("_")[0]
        rows.setdefault(head if any(head in pair for pair in pairs) else "", []).append(entry)
    return [{"name": name, "cards": cards} for name, cards in rows.items()]
