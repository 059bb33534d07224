"""Two arms of a race in one chain: the best that gain at all, each with each."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from studies.auto.allocation import leader
from studies.auto.arms import ARMS, Arm, together

if TYPE_CHECKING:
    from studies.auto.race import Race

PAIRED = 3
"""How many of the best arms are put together in pairs."""


def pair(race: Race, *names: str) -> Arm | None:
    """Two begun arms in one chain, where there is such a chain."""
    begun = [race.entries[name].arm for name in names if name in race.entries]
    return together(*begun) if len(begun) == len(names) == 2 else None


def pairs(race: Race) -> list[Arm]:
    """The best arms that gain over the baseline at all, each with each; without those that were offered a slice."""
    standings = [
        entry.standing
        for entry in race.entries.values()
        if entry.standing is not None and entry.arm.name in ARMS and np.nansum(entry.standing.gains) > 0
    ]
    best: list[str] = []
    while standings and len(best) < PAIRED:
        ahead = leader(standings, race.sizes)
        best.append(ahead.name)
        standings = [standing for standing in standings if standing is not ahead]
    found = [pair(race, one, other) for at, one in enumerate(best) for other in best[at + 1 :]]
    return [arm for arm in found if arm is not None and arm.name not in race.offered]
