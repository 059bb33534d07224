"""Space of steering: direction, edit, layers and gate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from search_spaces.conditions import Read, nonzero
from search_spaces.parameters import choice, declared, real, whole


@dataclass(frozen=True, slots=True)
class Params:
    """One way to steer; see `methods.steering.learned.Settings`.

    `front` and `centred` are at what trials of earlier versions had, which lack them. `place`: from `start` on, where
    the direction separates best, or the layers of a list ("2,4,5") that a spec gives.
    """

    front: str = choice("others", ["answered"])
    centred: bool = choice(False, [True, False])
    direction: str = choice("mean_difference", ["mean_difference", "svd", "preference"])
    general: str = choice("mean_difference", ["mean_difference", "ccs"])
    shrink: float = real(1.0, (0.1, 50.0), log=True)
    groups: int = whole(1, (1, 6))
    edit: str = choice("additive", ["additive", "projection"])
    site: str = choice("block", ["block", "mlp"])
    scope: str = choice("last", ["last", "all"])
    alpha_personal: float = real(0.0, (0.0, 2.0))
    alpha_general: float = real(0.0, (-1.0, 1.0))
    place: str = choice("start", ["start", "auto"])
    start: float = real(0.0, (0.0, 1.0))
    count: int = whole(1, (1, 8))
    gate: str = choice("none", ["none", "cosine", "product"])
    open_share: float = real(1.0, (0.1, 1.0))


BASELINE = Params()
SPACE = declared(Params)
OPEN = {"place": r"\d+(,\d+)*", "front": "stated|others", "scope": "answer"}
"""A spec may also give a list of layers, the dearer ways to read a history, and the answer's tokens alone."""
MOST = {"start": 1.0, "open_share": 1.0}
PERSONAL, GENERAL = {"alpha_personal": nonzero}, {"alpha_general": nonzero}
COSINE = {"gate": ("cosine",)}
READ: Read = {
    "direction": [PERSONAL, {**GENERAL, **COSINE}, {**GENERAL, "place": ("auto",)}],
    "general": [GENERAL],
    "shrink": [PERSONAL, {**GENERAL, **COSINE}],
    "groups": [PERSONAL, {**GENERAL, **COSINE}],
    "centred": [PERSONAL, {**GENERAL, **COSINE}],
    **{name: [PERSONAL, GENERAL] for name in ("front", "edit", "site", "scope", "place", "gate")},
    "start": [{**side, "place": ("start",)} for side in (PERSONAL, GENERAL)],
    "count": [{**side, "place": ("start", "auto")} for side in (PERSONAL, GENERAL)],
    "open_share": [{**side, **COSINE} for side in (PERSONAL, GENERAL)],
}


def canonical(values: Mapping[str, Any]) -> dict[str, Any]:
    """A gate that is open for all is none, and one that never opens steers nothing."""
    found = dict(values)
    if found["gate"] == "cosine" and found["open_share"] == 1:
        found["gate"] = "none"
    if found["gate"] == "product" and found["alpha_general"] * found["alpha_personal"] == 0:
        found |= {"alpha_personal": 0.0, "alpha_general": 0.0}
    return found


def complexity(params: Params) -> float:
    """The parts and strengths of the edit."""
    parts = (params.alpha_personal != 0) + (params.alpha_general != 0) + (params.gate != "none") + (params.count > 1)
    return parts + 0.1 * (abs(params.alpha_personal) + abs(params.alpha_general))
