"""Space of the retrieval objective: how the history is ranked, how it is used, and the calibration on top of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from search_spaces import calibration

SPACE: dict[str, BaseDistribution] = {
    "template": CategoricalDistribution(
        ["{label}", "{label} news", "this text is about {label}", "category: {label}", "a text tagged {label}"]
    ),
    "scale": FloatDistribution(5.0, 100.0, log=True),
    "k": IntDistribution(0, 16),
    "ranking": CategoricalDistribution(["similarity", "bm25", "mix", "recency"]),
    "mix": FloatDistribution(0.0, 1.0, step=0.25),
    "width": FloatDistribution(0.01, 1.0, log=True),
    "half_life": FloatDistribution(2.0, 1000.0, log=True),
    **calibration.SPACE,
    "prior_mode": CategoricalDistribution(["similar", "user", "global", "uniform"]),
}

ONLY = {"template": "encoder", "scale": "encoder", "k": "causal"}
"""Parameters that one kind of backbone reads; they stay at their baseline for the others."""
READ_WITH: dict[str, dict[str, tuple[str | int, ...]]] = {
    "width": {"prior_mode": ("similar",)},
    "half_life": {"prior_mode": ("similar",)},
    "mix": {"ranking": ("mix",)},
}


@dataclass(frozen=True, slots=True)
class Params(calibration.Params):
    """A calibration, and one use of the history. What has no effect is set to its baseline."""

    template: str
    scale: float
    k: int
    ranking: str
    mix: float
    width: float
    half_life: float


_NONE: dict[str, Any] = {
    "template": "{label}", "scale": 20.0, "k": 0, "ranking": "recency", "mix": 0.0, "width": 1.0, "half_life": 1000.0,
}  # fmt: skip

BASELINE = Params(**_NONE, **asdict(calibration.BASELINE))


def decode(raw: Mapping[str, Any]) -> Params:
    """Params from a trial's raw values."""
    values = {**_NONE, **raw}
    values |= asdict(calibration.decode({name: values[name] for name in calibration.SPACE}))
    if values["prior_mode"] != "similar":
        values |= {name: _NONE[name] for name in ("width", "half_life")}
        if values["k"] == 0:
            values["ranking"] = _NONE["ranking"]
    if values["ranking"] != "mix":
        values["mix"] = _NONE["mix"]
    if values["ranking"] == "recency":
        values["width"] = _NONE["width"]
    return Params(**values)


def complexity(params: Params) -> float:
    """That of the calibration, and the uses of the history."""
    parts = (params.prior_mode == "similar") + (params.k > 0) + (params.ranking == "mix")
    return calibration.complexity(params) + parts + 0.01 * params.k
