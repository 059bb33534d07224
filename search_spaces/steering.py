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
    **calibration.SPACE,
}


@dataclass(frozen=True, slots=True)
class Params(calibration.Params):
    """A calibration and one way to steer. What has no effect is set to its baseline, so that equal ones are equal."""

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


_NONE: dict[str, Any] = {
    "direction": "mean_difference", "general": "mean_difference", "shrink": 1.0, "groups": 1, "edit": "additive",
    "site": "block", "scope": "last", "alpha_personal": 0.0, "alpha_general": 0.0, "place": "start", "start": 0.0,
    "count": 1, "gate": "none", "open_share": 1.0,
}  # fmt: skip


def _calibration(values: Mapping[str, Any]) -> dict[str, Any]:
    return asdict(calibration.decode({name: values[name] for name in calibration.SPACE}))


BASELINE = Params(**_NONE, **asdict(calibration.BASELINE))


def decode(raw: Mapping[str, Any]) -> Params:
    """Params from a trial's raw values."""
    values = {**_NONE, **raw, **_calibration(raw)}
    if values["alpha_general"] == 0:
        values["general"] = _NONE["general"]
    if values["alpha_personal"] == 0 and values["gate"] != "cosine":
        values |= {name: _NONE[name] for name in ("groups", "shrink")}
    shut = values["gate"] == "product" and (values["alpha_general"] <= 0 or values["alpha_personal"] == 0)
    if shut or (values["alpha_personal"] == 0 and values["alpha_general"] == 0):
        values |= _NONE
    if values["place"] == "auto":
        values["start"] = _NONE["start"]
    if values["gate"] != "cosine":
        values["open_share"] = _NONE["open_share"]
    return Params(**values)


def complexity(params: Params) -> float:
    """That of the calibration, and the parts and strengths of the edit."""
    parts = (params.alpha_personal != 0) + (params.alpha_general != 0) + (params.gate != "none") + (params.count > 1)
    return calibration.complexity(params) + parts + 0.1 * (abs(params.alpha_personal) + abs(params.alpha_general))
