"""Samplers by name, each built from a seed and a space. Finite searches are lists of points, queued one after another.

Optuna's GridSampler and BruteForceSampler take a failed trial for a visited point, and the grid's fails where queued
points come in between. A list knows which of its points are missing, whoever lost them.
"""

from __future__ import annotations

import hashlib
import itertools
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import optuna
from optuna import samplers
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.exceptions import ExperimentalWarning

from personalization.errors import UsageError

Space = Mapping[str, BaseDistribution]
LONE = "0"
"""The worker of a seed, where no other worker lives: its proposals can be repeated."""


def derived_seed(study_seed: int, sampler: str, worker: str, trials_so_far: int) -> int:
    """One seed for each (study, worker, number of trials so far): a resumed study does not repeat its first trials.

    Finite searches keep the study's seed, which draws the order of their points.
    """
    if sampler in FINITE:
        return study_seed
    text = f"{study_seed}/{worker}/{trials_so_far}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")


def points(sampler: str, seed: int, space: Space) -> list[dict[str, Any]] | None:
    """Every point of a finite search, in the order that the seed draws; None for a sampler that draws its own.

    UsageError for a space that is not finite.
    """
    if sampler not in FINITE:
        return None
    names = sorted(space)
    found = list(itertools.product(*(_values(name, space[name]) for name in names)))
    np.random.RandomState(seed).shuffle(found)
    return [dict(zip(names, values, strict=True)) for values in found]


def suggested(trial: optuna.Trial, space: Space) -> dict[str, Any]:
    """A value for each parameter of a space."""
    for name, distribution in space.items():
        if isinstance(distribution, CategoricalDistribution):
            trial.suggest_categorical(name, distribution.choices)
        elif isinstance(distribution, IntDistribution):
            trial.suggest_int(name, distribution.low, distribution.high, step=distribution.step, log=distribution.log)
        elif isinstance(distribution, FloatDistribution):
            trial.suggest_float(name, distribution.low, distribution.high, step=distribution.step, log=distribution.log)
    return trial.params


def holds(name: str, distribution: BaseDistribution, value: Any) -> bool:
    """Whether a distribution can give this value."""
    try:
        optuna.trial.create_trial(params={name: value}, distributions={name: distribution}, value=0.0)
    except ValueError:
        return False
    return True


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


SAMPLERS: dict[str, Callable[[int], samplers.BaseSampler]] = {
    "tpe": lambda seed: samplers.TPESampler(seed=seed),
    "nsga2": lambda seed: samplers.NSGAIISampler(seed=seed),
    "nsga3": lambda seed: samplers.NSGAIIISampler(seed=seed),
    "gp": lambda seed: samplers.GPSampler(seed=seed),
    "qmc": lambda seed: samplers.QMCSampler(seed=seed, warn_independent_sampling=False),
    "random": lambda seed: samplers.RandomSampler(seed=seed),
    "grid": lambda seed: samplers.RandomSampler(seed=seed),
    "brute": lambda seed: samplers.RandomSampler(seed=seed),
}
FINITE = ("grid", "brute")
"""Two names of one thing: every point once. What they queue leaves nothing to draw."""


def make_sampler(name: str, seed: int) -> samplers.BaseSampler:
    """A sampler by name. Optuna's notes that one is experimental are left out: the user chose it."""
    with warnings.catch_warnings(category=ExperimentalWarning, action="ignore"):
        return SAMPLERS[name](seed)
