"""What a stage says of itself: one value, whatever the stage."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

Field = float | int | str | tuple[str, ...]


@dataclass(frozen=True)
class Facts:
    """What a stage did on the tune users, beyond its predictions.

    `metrics`: stored with the trial's; `curves`: name -> a value a step; `alarms`: what looked wrong, `remarks`: why
    the figures are what they are, a sentence each. Few trials are asked for more, and it is made then: `pictures`, name
    of a figure -> what that figure takes; `files`, file name -> content. `fields`: GROUP.NAME -> a number, a word, or
    words of which a trial has several, by which insights compare trials (groups: calibration, steering, training,
    architecture, data, features).
    """

    metrics: Mapping[str, float] = field(default_factory=dict)
    curves: Mapping[str, Sequence[float]] = field(default_factory=dict)
    alarms: Sequence[str] = ()
    remarks: Sequence[str] = ()
    pictures: Mapping[str, Callable[[], Mapping[str, Any]]] = field(default_factory=dict)
    files: Mapping[str, Callable[[], bytes]] = field(default_factory=dict)
    fields: Mapping[str, Field] = field(default_factory=dict)


def joined(facts: Sequence[Facts]) -> Facts:
    """The facts of several stages as one."""
    found: dict[str, Any] = {}
    for part in fields(Facts):
        values = [getattr(one, part.name) for one in facts]
        if part.name in ("alarms", "remarks"):
            found[part.name] = tuple(said for value in values for said in value)
        else:
            found[part.name] = {key: entry for value in values for key, entry in value.items()}
    return Facts(**found)
