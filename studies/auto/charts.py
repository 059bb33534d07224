"""Small figures of the page of a race, as SVG that takes the page's colours."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from markupsafe import escape

from studies.auto.clock import spoken_time

WIDTH, HEIGHT = 360, 190
LEFT, RIGHT, TOP, BOTTOM = 46, 10, 12, 34


def _frame(inside: str, label: str, ticks: Sequence[tuple[float, str]], floor: Sequence[tuple[float, str]]) -> str:
    """Axes around what stands inside; ticks as (place from 0 to 1, text)."""
    marks = []
    for place, text in ticks:
        y = _y(place)
        marks.append(f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        marks.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{escape(text)}</text>')
    marks += [
        f'<text x="{_x(place):.1f}" y="{HEIGHT - 12}" text-anchor="middle">{escape(text)}</text>'
        for place, text in floor
    ]
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)}">{"".join(marks)}{inside}</svg>'


def _x(place: float) -> float:
    return LEFT + place * (WIDTH - LEFT - RIGHT)


def _y(place: float) -> float:
    return HEIGHT - BOTTOM - place * (HEIGHT - TOP - BOTTOM)


def _scaled(values: Sequence[float]) -> tuple[list[float], list[tuple[float, str]]]:
    """Values from 0 to 1, and three ticks."""
    low, high = min(values), max(values)
    span = high - low or 1.0
    ticks = [(part, f"{low + part * span:.2f}") for part in (0.0, 0.5, 1.0)]
    return [(value - low) / span for value in values], ticks


def over_time(seconds: Sequence[float], gains: Sequence[float]) -> str:
    """The best gain so far over seconds, as steps."""
    if not gains:
        return ""
    end = seconds[-1] or 1.0
    (began, *heights), ticks = _scaled([0.0, *gains])
    path = [f"M{_x(0):.1f},{_y(began):.1f}"]
    path += [f"H{_x(at / end):.1f}V{_y(height):.1f}" for at, height in zip(seconds, heights, strict=True)]
    path.append(f"H{_x(1):.1f}")
    floor = [(0.0, "0"), (0.5, spoken_time(end / 2)), (0.96, spoken_time(end))]
    return _frame(f'<path class="line" d="{"".join(path)}"/>', "Best gain over time", ticks, floor)


def by_gain(counts: Sequence[int], edges: Sequence[float], unchanged: int) -> str:
    """How many users gain how much: a histogram, losses and gains in their colours; `unchanged`: who neither."""
    most = max(1, unchanged, *counts)
    width = (WIDTH - LEFT - RIGHT) / len(counts)
    bars = []
    for at, count in enumerate(counts):
        middle = (edges[at] + edges[at + 1]) / 2
        kind = "loss" if middle < -1e-9 else "win"
        top = _y(count / most)
        bars.append(
            f'<rect class="{kind}" x="{LEFT + at * width + 1:.1f}" y="{top:.1f}" width="{width - 2:.1f}" '
            f'height="{_y(0) - top:.1f}"><title>{edges[at]:+.1f} to {edges[at + 1]:+.1f}: {count} users</title></rect>'
        )
    top = _y(unchanged / most)
    bars.append(
        f'<rect class="same" x="{_x(0.5) - 5:.1f}" y="{top:.1f}" width="10" height="{_y(0) - top:.1f}">'
        f"<title>no change: {unchanged} users</title></rect>"
    )
    floor = [(0.02 + 0.95 * float(place), f"{-1 + 2 * place:+.1f}") for place in np.linspace(0, 1, 5)]
    return _frame("".join(bars), "Users by gain", [(0.0, "0"), (1.0, str(most))], floor)


def by_arm(
    names: Sequence[str], gains: Sequence[float], intervals: Sequence[Sequence[float]], fewer: Sequence[bool]
) -> str:
    """Gains of arms with their intervals, one under the other; hollow where they are of fewer users than the others."""
    if not names:
        return ""
    ends = [0.0, *(end for pair in intervals for end in pair)]
    low, span = min(ends), (max(ends) - min(ends)) or 1.0
    row, top, left = 26, 8, 120
    height = top + row * len(names) + 24

    def at(gain: float) -> float:
        return left + (gain - low) / span * (WIDTH - left - 20)

    marks = [f'<line class="axis" x1="{at(0):.1f}" x2="{at(0):.1f}" y1="{top}" y2="{height - 22}"/>']
    rows = zip(names, gains, intervals, fewer, strict=True)
    for place, (name, gain, (below, above), some) in enumerate(rows):
        y, kind = top + row * (place + 0.5), "hollow" if some else "mark"
        marks.append(
            f'<text x="{left - 8}" y="{y + 4:.1f}" text-anchor="end">{escape(name)}</text>'
            f'<line class="line" x1="{at(below):.1f}" x2="{at(above):.1f}" y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<circle class="{kind}" cx="{at(gain):.1f}" cy="{y:.1f}" r="4"><title>{gain:+.3f}</title></circle>'
        )
    for value in (low, low + span):
        marks.append(f'<text x="{at(value):.1f}" y="{height - 6}" text-anchor="middle">{value:+.2f}</text>')
    return f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="Gains of arms">{"".join(marks)}</svg>'


def by_items(items: Sequence[str], accuracies: Sequence[float], intervals: Sequence[Sequence[float]]) -> str:
    """Accuracy by how many history items are given, with intervals."""
    heights, ticks = _scaled([*accuracies, *(end for pair in intervals for end in pair)])
    ends = heights[len(items) :]
    places = [(i + 0.5) / len(items) for i in range(len(items))]
    marks = []
    for place, accuracy, below, above in zip(places, heights, ends[::2], ends[1::2], strict=False):
        x = _x(place)
        marks.append(
            f'<line class="line" x1="{x:.1f}" x2="{x:.1f}" y1="{_y(below):.1f}" y2="{_y(above):.1f}"/>'
            f'<circle class="mark" cx="{x:.1f}" cy="{_y(accuracy):.1f}" r="4"/>'
        )
    return _frame("".join(marks), "Accuracy by history items", ticks, list(zip(places, items, strict=True)))
