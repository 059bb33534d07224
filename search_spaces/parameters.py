"""A parameter of a stage, said once: what it is where nothing is changed, and what may be searched."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import Field, field, fields
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

Bounds = tuple[float, float]


def choice(baseline: Any, choices: Sequence[Any], on_request: bool = False) -> Any:
    """One of these; `on_request`: searched only where a spec names it."""
    return _field(baseline, CategoricalDistribution(choices), on_request)


def real(
    baseline: float, bounds: Bounds, log: bool = False, step: float | None = None, on_request: bool = False
) -> Any:
    """A number between these."""
    return _field(baseline, FloatDistribution(*bounds, log=log, step=step), on_request)


def whole(baseline: int, bounds: tuple[int, int]) -> Any:
    """A whole number between these."""
    return _field(baseline, IntDistribution(*bounds), False)


def _field(baseline: Any, distribution: BaseDistribution, on_request: bool) -> Any:
    return field(default=baseline, metadata={"distribution": distribution, "on_request": on_request})


def declared(params: Any, on_request: bool = False) -> dict[str, BaseDistribution]:
    """Name -> distribution of what is searched, or of what is searched on request."""
    known: tuple[Field[Any], ...] = fields(params)
    return {one.name: one.metadata["distribution"] for one in known if one.metadata["on_request"] == on_request}
