"""Space of the steering objective: direction, edit, layers and gate, and the calibration on top of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from search_spaces import calibration

SPACE: dict[str, BaseDistribution] = {
    "direction": CategoricalDistribution(["mean_difference", "svd", "preference"]),
    "general": CategoricalDistribution(["mean_difference", "ccs"]),
    "shrink": FloatDistribution(0.1, 50.0, log=True),
    "groups": IntDistribution(1, 6),
    "edit": CategoricalDistribution(["additive", "projection"]),
    "site": CategoricalDistribution(["block", "mlp"]),
    "scope": CategoricalDistribution(["last", "all"]),
    "alpha_personal": FloatDistribution(0.0, 2.0),
    "alpha_general": FloatDistribution(-1.0, 1.0),
    "place": CategoricalDistribution(["start", "auto"]),
    "start": FloatDistribution(0.0, 1.0),
    "count": IntDistribution(1, 8),
    "gate": CategoricalDistribution(["none", "cosine", "product"]),
    "open_share": FloatDistribution(0.1, 1.0),
    "fit": CategoricalDistribution(["searched", "exact"]),
    **calibration.SPACE,
}

READ_WITH: dict[str, dict[str, tuple[str, ...]]] = {
    **{name: {"fit": ("searched",)} for name in ("beta", "gamma", "tau", "source")},
    "start": {"place": ("start",)},
    "open_share": {"gate": ("cosine",)},
}
OPEN = {"place": r"\d+(,\d+)*"}
"""A spec may also give a list of layers."""


@dataclass(frozen=True, slots=True)
class Params(calibration.Params):
    """A calibration and one way to steer. What has no effect is set to its baseline, so that equal ones are equal.

    `place`: from `start` on, where the direction separates best, or the layers of a list ("2,4,5") that a spec gives.
    `fit`: exact takes beta, gamma and tau from the convex optimum of NLL on tune.
    """

    direction: str
    general: str
    shrink: float
    groups: int
    edit: str
    site: str
    scope: str
    alpha_personal: float
    alpha_general: float
    place: str
    start: float
    count: int
    gate: str
    open_share: float
    fit: str


_NONE: dict[str, Any] = {
    "direction": "mean_difference", "general": "mean_difference", "shrink": 1.0, "groups": 1, "edit": "additive",
    "site": "block", "scope": "last", "alpha_personal": 0.0, "alpha_general": 0.0, "place": "start", "start": 0.0,
    "count": 1, "gate": "none", "open_share": 1.0, "fit": "searched",
}  # fmt: skip


def _calibration(values: Mapping[str, Any]) -> dict[str, Any]:
    return asdict(calibration.decode({name: values[name] for name in calibration.SPACE}))


BASELINE = Params(**_NONE, **asdict(calibration.BASELINE))


def decode(raw: Mapping[str, Any]) -> Params:
    """Params from a trial's raw values."""
    values = {**_NONE, **raw}
    if values["fit"] == "exact":
        values |= {"beta": 1.0, "gamma": 1.0, "tau": 1.0, "source": "batch"}
    values |= _calibration(values)
    if values["alpha_general"] == 0:
        values["general"] = _NONE["general"]
    if values["gate"] == "cosine" and values["open_share"] == 1:
        values["gate"] = "none"
    if values["alpha_personal"] == 0 and values["gate"] != "cosine":
        values |= {name: _NONE[name] for name in ("groups", "shrink")}
        if values["place"] != "auto":
            values["direction"] = _NONE["direction"]
    shut = values["gate"] == "product" and values["alpha_general"] * values["alpha_personal"] == 0
    if shut or (values["alpha_personal"] == 0 and values["alpha_general"] == 0):
        values |= {name: _NONE[name] for name in _NONE if name != "fit"}
    if values["place"] != "start":
        values["start"] = _NONE["start"]
    if values["place"] not in ("start", "auto"):
        values["count"] = _NONE["count"]
    if values["gate"] != "cosine":
        values["open_share"] = _NONE["open_share"]
    return Params(**values)


def complexity(params: Params) -> float:
    """That of the calibration, and the parts and strengths of the edit."""
    parts = (params.alpha_personal != 0) + (params.alpha_general != 0) + (params.gate != "none") + (params.count > 1)
    return calibration.complexity(params) + parts + 0.1 * (abs(params.alpha_personal) + abs(params.alpha_general))
