"""Space of the head: for whom, how strongly it is held, and its weight in the answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from search_spaces.conditions import Read
from search_spaces.parameters import choice, declared, real, whole


@dataclass(frozen=True, slots=True)
class Params:
    """A head, `blend` its weight. `c`: of the head of all; `c_own`: of a group's or user's distance to it; `depth`: the
    layer of a causal model, as a share."""

    head: str = choice("none", ["none", "logistic"])
    blend: float = real(0.0, (0.0, 1.0))
    level: str = choice("unified", ["unified", "cluster", "user"])
    groups: int = whole(4, (2, 8))
    cluster_by: str = choice("words", ["words", "labels", "embedding"])
    c: float = real(0.01, (1e-4, 10.0), log=True)
    c_own: float = real(0.01, (1e-4, 10.0), log=True)
    depth: float = real(0.0, (0.0, 1.0))


BASELINE = Params()
SPACE = declared(Params)
ONLY = {"depth": "causal"}
MOST = {"blend": 1.0, "depth": 1.0}
ON = {"head": ("logistic",)}
READ: Read = {
    **{name: [ON] for name in ("blend", "level", "c", "depth")},
    "groups": [{**ON, "level": ("cluster",)}],
    "cluster_by": [{**ON, "level": ("cluster",)}],
    "c_own": [{**ON, "level": ("cluster", "user")}],
}


def canonical(values: Mapping[str, object]) -> dict[str, object]:
    """Without weight there is no head."""
    return {**values, "head": "none"} if values["blend"] == 0 else dict(values)


def complexity(params: Params) -> float:
    """A head is one; of groups it is one more, of users two."""
    levels = {"unified": 0, "cluster": 1, "user": 2}
    return (params.head != "none") + levels[params.level] + (0 < params.blend < 1)
