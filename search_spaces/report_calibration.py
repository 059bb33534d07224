"""Space of the reports' calibration: strength of the subtracted label prior, its smoothing, and the temperature."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution

SPACE: dict[str, BaseDistribution] = {
    "beta": FloatDistribution(0.0, 2.0),
    "tau": FloatDistribution(1.0, 5.0),
    "alpha": FloatDistribution(0.1, 10.0, log=True),
    "prior_mode": CategoricalDistribution(["user", "global"]),
}


@dataclass(frozen=True, slots=True)
class Params:
    """One calibration by the reports' formula."""

    beta: float
    tau: float
    alpha: float
    prior_mode: str


BASELINE = Params(beta=0.0, tau=1.0, alpha=1.0, prior_mode="global")


def decode(raw: Mapping[str, Any]) -> Params:
    """Params from a trial's raw values."""
    return Params(**raw)


def complexity(params: Params) -> float:
    """Number of parts in use, then the strength."""
    return (params.beta != 0) + (params.prior_mode == "user") + 0.1 * params.beta
