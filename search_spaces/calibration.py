"""Space of the calibration: strengths and sources of the two priors, the temperature, and the reports' formula."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution

from search_spaces.conditions import Read, nonzero, other_than

SPACE: Mapping[str, BaseDistribution] = {
    "formula": CategoricalDistribution(["adjusted"]),
    "ranking": CategoricalDistribution(["similarity", "bm25", "mix", "recency"]),
    "mix": FloatDistribution(0.0, 1.0, step=0.25),
    "width": FloatDistribution(0.01, 1.0, log=True),
    "half_life": FloatDistribution(2.0, 1000.0, log=True),
    "beta": FloatDistribution(0.0, 2.0),
    "gamma": FloatDistribution(-0.5, 2.0),
    "kappa": FloatDistribution(0.5, 50.0, log=True),
    "tau": FloatDistribution(0.25, 4.0, log=True),
    "prior_mode": CategoricalDistribution(["similar", "user", "global", "uniform"]),
    "source": CategoricalDistribution(["batch", "neutral", "content_free"]),
    "alpha": FloatDistribution(0.1, 10.0, log=True),
    "fit": CategoricalDistribution(["searched", "exact"]),
}
OWN = ("none", "gamma", "kappa", "tau", "all")
"""Which strengths are each user's own."""
ON_REQUEST: Mapping[str, BaseDistribution] = {
    "reach": FloatDistribution(0.0, 4.0),
    "floor": FloatDistribution(0.0, 1.0),
    "near": FloatDistribution(0.02, 1.0, log=True),
    "kin": FloatDistribution(0.0, 8.0),
    "per_user": CategoricalDistribution(OWN),
}
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
    "source": [
        {**SEARCHED, "formula": ("adjusted",), "beta": nonzero, "head.head": ("none",), "adapter.adapter": ("none",)}
    ],
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


@dataclass(frozen=True, slots=True)
class Params:
    """One calibration. `fit`: exact takes beta, gamma and tau from the convex optimum of NLL on tune.

    `formula`: report subtracts the reports' prior, with `alpha` pseudo-counts. `reach`: the weight of other users'
    similar items beside the user's own, those above `floor`, by `near` and `kin` (`methods.history.pool`).
    `per_user`: strengths that are each user's own, shrunk towards the common ones (`methods.taste.own`).
    """

    formula: str = "adjusted"
    ranking: str = "recency"
    mix: float = 0.0
    width: float = 1.0
    half_life: float = 1000.0
    beta: float = 0.0
    gamma: float = 0.0
    kappa: float = 1.0
    tau: float = 1.0
    prior_mode: str = "uniform"
    source: str = "batch"
    alpha: float = 1.0
    fit: str = "searched"
    reach: float = 0.0
    floor: float = 0.5
    near: float = 0.1
    kin: float = 0.0
    per_user: str = "none"


BASELINE = Params()


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
