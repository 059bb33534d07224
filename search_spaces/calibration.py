"""Space of the calibration: strengths and sources of the two priors, the temperature, and the reports' formula."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from search_spaces.conditions import Read, nonzero, other_than
from search_spaces.parameters import choice, declared, real

OWN = ("none", "gamma", "kappa", "tau", "all")
"""Which strengths are each user's own."""


@dataclass(frozen=True, slots=True)
class Params:
    """One calibration. `fit`: exact takes beta, gamma and tau from the convex optimum of NLL on tune.

    `formula`: report subtracts the reports' prior, with `alpha` pseudo-counts. `reach`: the weight of other users'
    similar items beside the user's own, those above `floor`, by `near` and `kin` (`methods.history.pool`).
    `per_user`: strengths that are each user's own, shrunk towards the common ones (`methods.taste.own`).
    """

    formula: str = choice("adjusted", ["adjusted"])
    ranking: str = choice("recency", ["similarity", "bm25", "mix", "recency"])
    mix: float = real(0.0, (0.0, 1.0), step=0.25)
    width: float = real(1.0, (0.01, 1.0), log=True)
    half_life: float = real(1000.0, (2.0, 1000.0), log=True)
    beta: float = real(0.0, (0.0, 2.0))
    gamma: float = real(0.0, (-0.5, 2.0))
    kappa: float = real(1.0, (0.5, 50.0), log=True)
    tau: float = real(1.0, (0.25, 4.0), log=True)
    prior_mode: str = choice("uniform", ["similar", "user", "global", "uniform"])
    source: str = choice("batch", ["batch", "neutral", "content_free"])
    alpha: float = real(1.0, (0.1, 10.0), log=True)
    fit: str = choice("searched", ["searched", "exact"])
    reach: float = real(0.0, (0.0, 4.0), on_request=True)
    floor: float = real(0.5, (0.0, 1.0), on_request=True)
    near: float = real(0.1, (0.02, 1.0), log=True, on_request=True)
    kin: float = real(0.0, (0.0, 8.0), on_request=True)
    per_user: str = choice("none", OWN, on_request=True)


BASELINE = Params()
SPACE, ON_REQUEST = declared(Params), declared(Params, on_request=True)
"""Other users' items answer a user, and strengths are each user's own, only where a spec says so."""
OPEN = {"formula": "report"}
"""A spec may ask for the reports' formula."""
MOST = {"mix": 1.0, "floor": 1.0}
SEARCHED = {"fit": ("searched",)}
REPORT = {"formula": ("report",)}
TASTE = other_than("uniform")
SIMILAR: Mapping[str, tuple[str, ...]] = {"prior_mode": ("similar",)}
PLAIN: Mapping[str, tuple[object, ...]] = {
    "head.head": ("none",),
    "adapter.adapter": ("none",),
    "steering.alpha_personal": (0.0,),
    "steering.alpha_general": (0.0,),
}
"""Nothing below that has learned from the user's items, or is taken from them."""
READ: Read = {
    "beta": [SEARCHED],
    "gamma": [{**SEARCHED, "formula": ("adjusted",), "prior_mode": TASTE}],
    "tau": [SEARCHED],
    "prior_mode": [{"gamma": nonzero}, {"fit": ("exact",)}, REPORT],
    "kappa": [{"prior_mode": ("user", "similar"), "formula": ("adjusted",)}],
    "source": [{**SEARCHED, "formula": ("adjusted",), "beta": nonzero, "prompt.k": (0,), **PLAIN}],
    "ranking": [SIMILAR],
    "mix": [{**SIMILAR, "ranking": ("mix",)}],
    "width": [{**SIMILAR, "ranking": other_than("recency")}],
    "half_life": [SIMILAR],
    "alpha": [REPORT],
    "reach": [{"prior_mode": ("user", "similar"), "formula": ("adjusted",)}],
    **{name: [{"prior_mode": ("user", "similar"), "reach": nonzero}] for name in ("floor", "near", "kin")},
    "fit": [{"formula": ("adjusted",)}],
    "per_user": [{"formula": ("adjusted",), "prior_mode": TASTE, **PLAIN}],
}


def canonical(values: Mapping[str, Any]) -> dict[str, Any]:
    """The reports know two priors; the prior of all users has no kappa."""
    found = dict(values)
    if found["formula"] == "report":
        found["prior_mode"] = {"similar": "user", "uniform": "global"}.get(found["prior_mode"], found["prior_mode"])
    if found["per_user"] == "kappa" and found["prior_mode"] == "global":
        found["per_user"] = "none"
    return found


def complexity(params: Params) -> float:
    """Number of parts in use, then the strengths: the simplest changes least."""
    parts = (params.beta != 0) + (params.gamma != 0) + (params.prior_mode in ("user", "similar"))
    more = (params.source != "batch") + (params.prior_mode == "similar") + (params.ranking == "mix")
    more += (params.reach != 0) + (params.per_user != "none")
    return parts + more + 0.1 * (abs(params.beta) + abs(params.gamma))
