"""Strengths of a user's own: gamma, kappa or tau, shrunk by empirical Bayes from the user's own past items.

Every labelled item i of user u is asked as a question with the items before it as its history, so no gold label of a
question is read. With theta = gamma, log kappa or log tau, and t the deviation from the common theta_0,

    L_u(t) = sum_i log p(y_i | x_i, u before i; theta_0 + t),    t_u ~ N(centre, spread^2)

centre and spread maximise the marginal likelihood of the tune users, sum_u log E exp L_u(t), and a user has

    theta_u = theta_0 + E[t | L_u] - centre

so that a user of whom nothing is known, and everybody where users do not differ (spread 0), keeps theta_0: that one is
tuned on questions, which need not be like histories. The prior is normal and the likelihood exact, on a grid; with a
normal likelihood of variance v_u it is Efron and Morris's (1975) shrinkage by spread^2 / (spread^2 + v_u). With all the
other items as an item's history (leave-one-out) every pair of items would count for both, and users would seem to
differ more than they do; in order they are one likelihood (Dawid 1984, prequential).

Strengths are tried one after the other, and each is used only where it helps on the tune users' questions, which it was
not learned from (`Between.used`). Cost: a pass over the latest items of each user's history (`past.PAST`), and
arithmetic.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from personalization.methods.taste.calibration import PriorTables, calibrate

NAMES: Mapping[str, tuple[str, ...]] = {
    "none": (),
    "gamma": ("gamma",),
    "kappa": ("kappa",),
    "tau": ("tau",),
    "all": ("gamma", "kappa", "tau"),
}
"""Choice -> strengths that are a user's own."""
GRIDS: Mapping[str, NDArray[np.float64]] = {
    "gamma": np.linspace(-1.5, 1.5, 31),
    "kappa": np.linspace(-3.0, 3.0, 31),
    "tau": np.linspace(-1.0, 1.0, 31),
}
"""Deviations from the common strength; of kappa and tau in logs."""
SPREADS = (0.0, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.6, 0.8, 1.2, 1.6)
"""Standard deviations between users that are tried."""

Floats = NDArray[np.floating]
Ints = NDArray[np.int64]


class Items(NamedTuple):
    """Past items: scores and what is known without each [m, K], the label that each has [m], whose each is [m]."""

    scores: Floats
    counts: NDArray[np.number[Any]]
    gold: Ints
    owners: Ints


class Between(NamedTuple):
    """How a strength differs between users: normally, about `centre`, by `spread`. `gain`: nats a question that users'
    own bring to the tune users' questions, with its standard error over users."""

    name: str
    centre: float
    spread: float
    gain: float = 0.0
    error: float = 0.0

    @property
    def used(self) -> bool:
        """Whether it helps out of fold, by more than one standard error."""
        return self.gain > self.error


def moved(strengths: Mapping[str, Any], name: str, deviations: Any) -> dict[str, Any]:
    """Strengths with one of them moved: gamma by a sum, kappa and tau by a factor."""
    own = strengths[name] + deviations if name == "gamma" else strengths[name] * np.exp(deviations)
    return {**strengths, name: own}


def likelihoods(items: Items, tables: PriorTables, strengths: Mapping[str, Any], name: str, users: int) -> Floats:
    """L_u on the grid of a strength, float [users, J]; 0 for a user without items."""
    out, rows = np.zeros((users, len(GRIDS[name]))), np.arange(len(items.gold))
    for column, deviation in enumerate(GRIDS[name]):
        found = calibrate(items.scores, items.counts, tables, **moved(strengths, name, deviation))
        out[:, column] = np.bincount(items.owners, found.log_probs[rows, items.gold], users)
    return out


def between(table: Floats, name: str) -> Between:
    """Centre and spread that make L_u [U, J] likeliest; of equals the smaller spread."""
    best, found = -np.inf, Between(name, 0.0, 0.0)
    for spread in SPREADS:
        for centre in GRIDS[name]:
            value = float(np.logaddexp.reduce(table + _log_prior(name, centre, spread), axis=1).sum())
            if value > best + 1e-9:
                best, found = value, Between(name, float(centre), spread)
    return found


def deviations(table: Floats, about: Between) -> NDArray[np.float64]:
    """E[t | L_u] less its mean without any item, float [U]."""
    prior = _log_prior(about.name, about.centre, about.spread)
    log_weights = table + prior
    posterior = np.exp(log_weights - np.logaddexp.reduce(log_weights, axis=1, keepdims=True))
    return np.asarray(posterior @ GRIDS[about.name] - np.exp(prior) @ GRIDS[about.name])


def following(
    items: Items, tables: PriorTables, strengths: Mapping[str, Any], about: Sequence[Between], name: str, users: int
) -> Between:
    """How one more strength differs between users, given their own of those before it."""
    given = with_own(items, tables, strengths, about, users)
    at_items = {**strengths, **{key: value[items.owners] for key, value in given.items()}}
    return between(likelihoods(items, tables, at_items, name, users), name)


def with_own(
    items: Items, tables: PriorTables, strengths: Mapping[str, Any], about: Sequence[Between], users: int
) -> dict[str, NDArray[np.float64]]:
    """strength -> each user's own, float [users, 1], of these strengths."""
    own: dict[str, NDArray[np.float64]] = {}
    at_items = dict(strengths)
    for one in about:
        found = deviations(likelihoods(items, tables, at_items, one.name, users), one)[:, None]
        own[one.name] = moved(strengths, one.name, found)[one.name]
        at_items[one.name] = own[one.name][items.owners]
    return own


def helped(lifted: Floats, users: Sequence[str]) -> tuple[float, float]:
    """(mean, standard error over users) of what each question [n] of these two users or more [n] gains."""
    _, owners = np.unique(users, return_inverse=True)
    sums, sizes = np.bincount(owners, lifted), np.bincount(owners)
    mean, count = lifted.mean(), len(sums)
    error = np.sqrt(count / (count - 1) * ((sums - mean * sizes) ** 2).sum()) / sizes.sum()
    return float(mean), float(error)


def _log_prior(name: str, centre: float, spread: float) -> NDArray[np.float64]:
    """Of the grid, [J], normalised."""
    grid = GRIDS[name]
    if spread == 0:
        return np.where(np.isclose(grid, centre), 0.0, -np.inf)
    log_density = -((grid - centre) ** 2) / (2 * spread**2)
    return np.asarray(log_density - np.logaddexp.reduce(log_density))
