"""Calibration of label scores: the model's own bias out, the user's taste in.

    z(y) = log p(y|x) - beta * log p_model(y) + gamma * log pi_u(y),    p(y|x, u) = softmax(z / tau)

beta and gamma decide the label; tau moves probabilities only. gamma's sign is free: the reports behind this project
subtracted the user's own label frequencies (gamma < 0), which removes what is personal. Their formula,

    z(y) = (log p(y|x) - beta * log prior(y)) / tau,    prior(y) = (n_y + alpha) / (n + alpha * K),

with the user's or the global label counts as prior, is `report_calibrate`.
References: Saerens 2002, Menon 2021 (logit adjustment), Guo 2017 (tau).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from personalization.methods.taste.priors import log_softmax, taste

Floats = NDArray[np.floating]
Ints = NDArray[np.int64]
Strength = float | NDArray[np.float64]


class Calibrated(NamedTuple):
    """`log_probs` float [n, K], and the prior mode that each question got."""

    log_probs: NDArray[np.float64]
    prior_modes: Sequence[str]


def gathered(n: int, k: int, parts: Iterable[tuple[Ints, Calibrated]]) -> Calibrated:
    """The answers [n, K], of those to some rows each."""
    log_probs, modes = np.empty((n, k)), [""] * n
    for rows, found in parts:
        log_probs[rows] = found.log_probs
        for row, mode in zip(rows, found.prior_modes, strict=True):
            modes[row] = mode
    return Calibrated(log_probs, modes)


@dataclass(frozen=True)
class PriorTables:
    """What calibration learned from the tune users: `log_model` source -> log p_model [K], `global_probs` [K] or None.

    `global_counts` int [K]: the history label counts behind `global_probs`.
    """

    log_model: dict[str, NDArray[np.float64]]
    global_probs: NDArray[np.float64] | None
    global_counts: NDArray[np.int64]


def calibrate(
    scores: Floats,
    counts: NDArray[np.number[Any]],
    tables: PriorTables,
    *,
    beta: float,
    gamma: Strength,
    kappa: Strength,
    tau: Strength,
    prior_mode: str,
    source: str,
) -> Calibrated:
    """The calibrated log-probabilities of scores [n, K] of questions whose users have history counts [n, K].

    With `prior_mode` similar, the counts are the weighted ones of similar items. gamma, kappa and tau are numbers, or
    one a question, [n, 1].
    """
    log_pi, modes = taste(counts, tables.global_probs, "user" if prior_mode == "similar" else prior_mode, kappa)
    if prior_mode == "similar":
        modes = ["similar" if mode == "user" else mode for mode in modes]
    z = scores - beta * tables.log_model[source] + gamma * log_pi
    return Calibrated(log_softmax(z / tau), modes)


def report_calibrate(
    scores: Floats, counts: Ints, tables: PriorTables, *, beta: float, tau: float, alpha: float, prior_mode: str
) -> Calibrated:
    """The reports' formula: the user's (from one past label on) or the global Dirichlet-smoothed prior subtracted."""
    n, k = counts.shape
    pooled = (tables.global_counts + alpha) / (tables.global_counts.sum() + alpha * k)
    prior = np.tile(pooled, (n, 1))
    modes = ["global" if tables.global_counts.sum() else "uniform (fall-back)"] * n
    if prior_mode == "user":
        own = counts.sum(axis=1) > 0
        prior[own] = (counts[own] + alpha) / (counts[own].sum(axis=1, keepdims=True) + alpha * k)
        fall_back = "global (fall-back)" if tables.global_counts.sum() else "uniform (fall-back)"
        modes = ["user" if has else fall_back for has in own]
    elif prior_mode != "global":
        raise ValueError(f"prior mode must be user or global, but got {prior_mode!r}")
    return Calibrated(log_softmax((scores - beta * np.log(prior)) / tau), modes)
