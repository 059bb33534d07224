"""Histories whose truth is planted."""

import numpy as np
import optuna
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from studies.insights.history import History, history

SPACE = {
    "strong": FloatDistribution(0.0, 1.0),
    "weak": CategoricalDistribution(["a", "b", "c"]),
    "none": IntDistribution(0, 4),
}


def trial(params, value, space=SPACE, constraints=None, attrs=None):
    return optuna.create_trial(
        params=params, distributions=space, value=float(value), constraints=constraints or {}, user_attrs=attrs or {}
    )


def planted(count: int, seed: int = 0, maximize: bool = True, noise: float = 0.3) -> History:
    """`strong` moves the value by about 1, `weak` by less, `none` not at all."""
    rng = np.random.default_rng(seed)
    trials = []
    for number in range(count):
        params = {"strong": float(rng.random()), "weak": str(rng.choice(["a", "b", "c"])), "none": int(rng.integers(5))}
        value = 2 * params["strong"] + 0.8 * (params["weak"] == "b") + noise * rng.normal()
        made = trial(params, value if maximize else -value)
        made.number = number
        trials.append(made)
    return history("planted", trials, ("value", "maximize" if maximize else "minimize"))


def of_values(name: str, pairs, direction: str = "maximize") -> History:
    """Trials of one categorical parameter: (choice, value)."""
    space = {name: CategoricalDistribution(list(dict.fromkeys(choice for choice, _ in pairs)))}
    trials = [trial({name: choice}, value, space) for choice, value in pairs]
    for number, made in enumerate(trials):
        made.number = number
    return history("pairs", trials, ("recall", direction))
