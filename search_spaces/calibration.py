"""Space of the calibration objective: strengths and sources of the two priors, and the temperature."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution

SPACE: dict[str, BaseDistribution] = {
    "beta": FloatDistribution(0.0, 2.0),
    "gamma": FloatDistribution(-0.5, 2.0),
    "kappa": FloatDistribution(0.5, 50.0, log=True),
    "tau": FloatDistribution(0.25, 4.0, log=True),
    "prior_mode": CategoricalDistribution(["user", "global", "uniform"]),
    "source": CategoricalDistribution(["batch", "neutral", "content_free"]),
}


@dataclass(frozen=True, slots=True)
class Params:
    """One calibration. What has no effect is set to its baseline, so that equal calibrations are equal."""

    beta: float
    gamma: float
    kappa: float
    tau: float
    prior_mode: str
    source: str


BASELINE = Params(beta=0.0, gamma=0.0, kappa=1.0, tau=1.0, prior_mode="uniform", source="batch")


def decode(raw: Mapping[str, Any]) -> Params:
    """Params from a trial's raw values."""
    params = Params(**raw)
    if params.prior_mode == "uniform" or params.gamma == 0:
        params = Params(params.beta, 0.0, BASELINE.kappa, params.tau, "uniform", params.source)
    elif params.prior_mode == "global":
        params = Params(params.beta, params.gamma, BASELINE.kappa, params.tau, "global", params.source)
    if params.beta == 0:
        params = Params(0.0, params.gamma, params.kappa, params.tau, params.prior_mode, BASELINE.source)
    return params


def complexity(params: Params) -> float:
    """Number of parts in use, then the strengths: the simplest changes least."""
    parts = (params.beta != 0) + (params.gamma != 0) + (params.prior_mode == "user") + (params.source != "batch")
    return parts + 0.1 * (abs(params.beta) + abs(params.gamma))
