"""A user's direction at each layer, from hidden states of the user's history.

History items are asked twice: with a history in front (personal) and alone (neutral); see `fronts`. P and N are the
states [m, d] at the prompts' last token, where the edit will be: what leaves a block, or its MLP. The directions:

    mean_difference   mean(P - N)
    svd               the first right singular vector of P (Chameleon's personal side, Zhang et al. 2025), signed to
                      agree with mean(P - N), and as long
    preference        the weighted mean of the normalised states of the items alone, the newest weighing most (the
                      second report behind this project)

Centred, what users have in common is taken out: with the means c of the tune users' directions and s of their personal
states, mean(P - N) - c, `svd` of P - s, and `preference` - c.

A user with m items is shrunk towards the user's group, (m d_user + kappa d_group) / (m + kappa), and a group of n users
likewise towards all: (n mean of its users + kappa d_all) / (n + kappa). The general direction is `mean_difference` over
all users, or `ccs`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

HALF_LIFE = 4
"""Items after which an item weighs half as much in `preference`."""
NOISE = 1e-4
"""Differences of states below this share of their length are rounding."""
RESTARTS = 10
"""Random starts of `ccs`, the best of which is kept."""


@dataclass(frozen=True)
class Pairs:
    """States of one user's m history items at one layer: `personal` and `neutral` float32 [m, d], oldest first."""

    personal: Floats
    neutral: Floats


class Common(NamedTuple):
    """What users have in common at one layer: the means of their directions and of their personal states, [d] each."""

    direction: Floats
    state: Floats


NOTHING = Common(np.zeros(1, dtype=np.float32), np.zeros(1, dtype=np.float32))


def mean_difference(pairs: Pairs, common: Common = NOTHING) -> Floats:
    """mean(P - N) without what is common, [d]; zero where it is no longer than the rounding of the states."""
    found = np.asarray((pairs.personal - pairs.neutral).mean(axis=0), dtype=np.float32)
    rounding = NOISE * np.linalg.norm(pairs.neutral, axis=1).mean()
    return found - common.direction if np.linalg.norm(found) > rounding else np.zeros_like(found)


def svd(pairs: Pairs, common: Common = NOTHING) -> Floats:
    """First right singular vector of P - s, as long as the mean difference and signed like it, [d]."""
    toward = mean_difference(pairs, common)
    first = np.linalg.svd((pairs.personal - common.state).astype(np.float64), full_matrices=False)[2][0]
    sign = 1.0 if first @ toward >= 0 else -1.0
    return np.asarray(sign * np.linalg.norm(toward) * first, dtype=np.float32)


def preference(pairs: Pairs, common: Common = NOTHING) -> Floats:
    """Weighted mean of the normalised neutral states without what is common, [d]."""
    age = np.arange(len(pairs.neutral))[::-1]
    weights = 0.5 ** (age / HALF_LIFE)
    lengths = np.linalg.norm(pairs.neutral, axis=1, keepdims=True)
    normal = np.divide(pairs.neutral, lengths, out=np.zeros_like(pairs.neutral), where=lengths > 0)
    return np.asarray(weights @ normal / weights.sum(), dtype=np.float32) - common.direction


DIRECTIONS = {"mean_difference": mean_difference, "svd": svd, "preference": preference}
"""name -> direction [d] of one user at one layer."""


def personal_directions(
    pairs: Mapping[Any, list[Pairs]], kind: str, common: Sequence[Common] | None = None
) -> NDArray[np.float32]:
    """Directions float32 [U, L, d], as long as they were found, of histories -> pairs a layer.

    `common`: of each layer, what is taken out.
    """
    estimate = DIRECTIONS[kind]
    out = common or [NOTHING] * len(next(iter(pairs.values())))
    return np.stack([[estimate(*layer) for layer in zip(layers, out, strict=True)] for layers in pairs.values()])


def common_part(pairs: Mapping[Any, list[Pairs]], kind: str) -> list[Common]:
    """What the directions and personal states of these histories have in common, at each layer."""
    means = personal_directions(pairs, "mean_difference" if kind == "svd" else kind).mean(axis=0)
    states = [
        np.mean([own.personal.mean(axis=0) for own in layer], axis=0) for layer in zip(*pairs.values(), strict=True)
    ]
    return [Common(mean, np.asarray(state, dtype=np.float32)) for mean, state in zip(means, states, strict=True)]


def likeness(own: NDArray[np.float32], general: NDArray[np.float32]) -> tuple[float, float]:
    """(mean cosine between the directions of two users, mean cosine with the general one), over layers.

    `own` [U, L, d], at least two users; `general` [L, d].
    """
    users, u = len(own), unit(own)
    pairs = (np.linalg.norm(u.sum(axis=0), axis=-1) ** 2 - (u**2).sum(axis=(0, 2))) / (users * (users - 1))
    return float(pairs.mean()), float((u * unit(general)).sum(axis=-1).mean())


def separation(pairs: Mapping[Any, list[Pairs]], kind: str) -> NDArray[np.float64]:
    """How well a direction tells states with the history from states without, at each layer: AUC, [L].

    A direction is found from every second item of a history and judged on the others, and the other way round, so that
    it cannot know the states that it is judged on. Histories of fewer than four items are left out; one half each.
    """
    from sklearn.metrics import roc_auc_score

    estimate = DIRECTIONS[kind]
    large = [layers for layers in pairs.values() if len(layers[0].neutral) >= 4]
    if not large:
        return np.full(len(next(iter(pairs.values()))), 0.5)
    found = []
    for layer in zip(*large, strict=True):
        with_history, without = [], []
        for own in layer:
            for half in (0, 1):
                known = Pairs(own.personal[half::2], own.neutral[half::2])
                axis = unit(estimate(known)[None])[0]
                with_history.append(own.personal[1 - half :: 2] @ axis)
                without.append(own.neutral[1 - half :: 2] @ axis)
        values = np.concatenate([*with_history, *without])
        truth = np.arange(len(values)) < sum(map(len, with_history))
        found.append(roc_auc_score(truth, values))
    return np.array(found)


def shrunk(
    own: NDArray[np.float32], items: NDArray[np.int64], pooled: NDArray[np.float32], kappa: float
) -> NDArray[np.float32]:
    """Directions [U, L, d] found from so many items [U], shrunk towards the pooled ones, [L, d] or [U, L, d]."""
    weight = items[:, None, None].astype(np.float64)
    return np.asarray((weight * own + kappa * pooled) / (weight + kappa), dtype=np.float32)


def group_directions(
    own: NDArray[np.float32], groups: NDArray[np.int64], count: int, kappa: float
) -> NDArray[np.float32]:
    """Directions [count, L, d] of groups of users [U], from those of their users [U, L, d], shrunk towards all.

    Zero where it is rounding, as the mean of all centred directions is.
    """
    sizes = np.bincount(groups, minlength=count)
    means = np.stack([own[groups == group].sum(axis=0) / max(size, 1) for group, size in enumerate(sizes)])
    found = shrunk(means, sizes, own.mean(axis=0), kappa)
    rounding = NOISE * np.linalg.norm(own, axis=-1).mean(axis=0)[..., None]
    return np.where(np.linalg.norm(found, axis=-1, keepdims=True) > rounding, found, np.float32(0))


def unit(vectors: NDArray[np.floating]) -> NDArray[np.float32]:
    """Vectors of length one; zero stays zero."""
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return np.asarray(np.divide(vectors, lengths, out=np.zeros_like(vectors), where=lengths > 0), dtype=np.float32)


def ccs(personal: Floats, neutral: Floats) -> tuple[Floats, float]:
    """Contrast-consistent search (Burns et al. 2022, arXiv 2212.03827): (unit direction [d], its loss).

    p(x) = sigmoid(w phi(x) + b) with phi normalised within each side; minimises (p+ - (1 - p-))^2 + min(p+, p-)^2 over
    pairs, the best of RESTARTS by L-BFGS. The sign of w is arbitrary; here personal states score higher.
    """
    from scipy.optimize import minimize

    def normalised(x: Floats) -> NDArray[np.float64]:
        spread = x.std(axis=0)
        return np.asarray((x - x.mean(axis=0)) / np.where(spread > 0, spread, 1.0), dtype=np.float64)

    plus, minus = normalised(personal), normalised(neutral)

    def loss(parameters: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        w, b = parameters[:-1], parameters[-1]
        p, q = (1 / (1 + np.exp(-np.clip(x @ w + b, -30, 30))) for x in (plus, minus))
        consistency, least = p + q - 1, np.minimum(p, q)
        value = float((consistency**2 + least**2).mean())
        dp = (2 * consistency + 2 * least * (p <= q)) * p * (1 - p) / len(p)
        dq = (2 * consistency + 2 * least * (p > q)) * q * (1 - q) / len(q)
        return value, np.append(dp @ plus + dq @ minus, dp.sum() + dq.sum())

    random = np.random.default_rng(0)
    starts = random.normal(size=(RESTARTS, plus.shape[1] + 1))
    starts /= np.linalg.norm(starts, axis=1, keepdims=True)
    found = min((minimize(loss, start, jac=True, method="L-BFGS-B") for start in starts), key=lambda result: result.fun)
    direction = found.x[:-1] / np.where(personal.std(axis=0) > 0, personal.std(axis=0), 1.0)
    if (personal - neutral).mean(axis=0) @ direction < 0:
        direction = -direction
    return unit(direction), float(found.fun)
