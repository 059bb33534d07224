"""Samplers and pruners by name, each built from a seed and a space."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from optuna import samplers
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.exceptions import ExperimentalWarning

from personalization.errors import UsageError

Space = Mapping[str, BaseDistribution]


def derived_seed(study_seed: int, sampler: str, worker: str, trials_so_far: int) -> int:
    """One seed for each (study, worker, number of trials so far): a resumed study does not repeat its first trials.

    The grid sampler keeps the study's seed: its points are numbered in an order that the seed draws.
    """
    if sampler == "grid":
        return study_seed
    text = f"{study_seed}/{worker}/{trials_so_far}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")


def _grid(seed: int, space: Space) -> samplers.BaseSampler:
    return samplers.GridSampler({name: _values(name, dist) for name, dist in space.items()}, seed=seed)


def _brute(seed: int, space: Space) -> samplers.BaseSampler:
    for name, distribution in space.items():
        _values(name, distribution)
    return samplers.BruteForceSampler(seed=seed)


def _values(name: str, distribution: BaseDistribution) -> list[Any]:
    """Every value of a finite distribution; UsageError for a continuous one."""
    if isinstance(distribution, CategoricalDistribution):
        return list(distribution.choices)
    if isinstance(distribution, IntDistribution):
        return list(range(distribution.low, distribution.high + 1, distribution.step))
    if isinstance(distribution, FloatDistribution) and distribution.step is not None:
        count = round((distribution.high - distribution.low) / distribution.step) + 1
        return [float(v) for v in np.linspace(distribution.low, distribution.high, count)]
    raise UsageError(
        f"space.{name}: the grid and brute samplers need values; give a list, a value, or a range with step"
    )


SAMPLERS: dict[str, Callable[[int, Space], samplers.BaseSampler]] = {
    "tpe": lambda seed, _: samplers.TPESampler(seed=seed),
    "nsga2": lambda seed, _: samplers.NSGAIISampler(seed=seed),
    "nsga3": lambda seed, _: samplers.NSGAIIISampler(seed=seed),
    "gp": lambda seed, _: samplers.GPSampler(seed=seed),
    "qmc": lambda seed, _: samplers.QMCSampler(seed=seed, warn_independent_sampling=False),
    "random": lambda seed, _: samplers.RandomSampler(seed=seed),
    "grid": _grid,
    "brute": _brute,
}


def make_sampler(name: str, seed: int, space: Space) -> samplers.BaseSampler:
    """A sampler by name. Optuna's notes that one is experimental are left out: the user chose it."""
    with warnings.catch_warnings(category=ExperimentalWarning, action="ignore"):
        return SAMPLERS[name](seed, space)
