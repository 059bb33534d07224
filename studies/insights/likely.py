"""Likely best, not luckiest: each trial's value shrunk towards what trials with the same values reach.

The best of many noisy values is best partly by luck. Values are taken as a sum of effects of the parameters' values
(those of `values`, Bayesian ridge regression: MacKay 1992, strengths of effects and noise by evidence) plus noise; the
posterior mean of a trial is its likely value, and `error` the standard deviation of that mean. What parameters do only
together counts as noise here, so that the likely value of a real lone peak is too low: it is shown beside the raw one,
never in its place.

The regression is scikit-learn's `BayesianRidge`, whose import takes as long as all else that the terminal does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from studies.insights.history import History
from studies.insights.values import levels

if TYPE_CHECKING:
    import pandas as pd

ENOUGH = 10
WEAK = 1e-6
"""Of the priors on the strengths of noise and effects, as BayesianRidge has it."""
ROUNDS, STILL = 2000, 1e-8
"""Most rounds of evidence, and what effects may move, summed, in the last one."""
COLUMNS = ("number", "value", "likely", "error", "rank", "likely_rank")


def likely(history: History) -> pd.DataFrame:
    """A row a feasible trial, the likely best first; `COLUMNS`, after `study` where there are several. Under ten trials
    nothing is shrunk."""
    kept = history.feasible
    values = kept["value"].to_numpy(dtype=float)
    found = [levels(p, kept[f"params_{name}"]).member for name, p in history.parameters.items()]
    effects = np.hstack([np.zeros((len(kept), 0)), *(member for member in found if member.shape[1] > 1)])
    mean, error = values, np.zeros(len(kept))
    if len(kept) >= ENOUGH and effects.shape[1] and values.max() > values.min():
        mean, error = _shrunken(effects, values)
    told = [name for name in ("study", "number", "value") if name in kept]
    frame = kept[told].assign(likely=mean, error=error)
    frame["rank"] = (-kept["gain"]).rank(method="first").astype(int)
    sign = 1.0 if history.maximize else -1.0
    frame["likely_rank"] = (-sign * frame["likely"]).rank(method="first").astype(int)
    return frame.sort_values("likely_rank", ignore_index=True)[[*told[:-2], *COLUMNS]]


def _shrunken(
    effects: NDArray[np.float64], values: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Likely values and their errors; the measured ones where the spread is beyond what a float holds."""
    centre, scale = float(values.mean()), float(values.std())
    if 0 < scale < np.inf:
        given, spread = ridge(effects, (values - centre) / scale)
        mean, error = centre + scale * given, scale * spread
        if np.isfinite([mean, error]).all():
            return mean, error
    return values, np.zeros(len(values))


def ridge(effects: NDArray[np.float64], gains: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Posterior mean and standard deviation [n] of what effects [n, V] make of gains [n] of mean 0; O(n V^2).

    Precisions of noise and effects maximise the evidence (MacKay 1992, with the updates of Tipping 2001).
    """
    centred = effects - effects.mean(axis=0)
    strengths, axes = np.linalg.eigh(centred.T @ centred)
    strengths, onto = np.maximum(strengths, 0), axes.T @ (centred.T @ gains)
    noise, own = 1 / gains.var(), 1.0
    before = np.zeros(len(onto))
    for _ in range(ROUNDS):
        found = axes @ (onto / (strengths + own / noise))
        if np.abs(found - before).sum() < STILL:
            break
        before = found
        known = float((noise * strengths / (own + noise * strengths)).sum())
        left = float(((gains - centred @ found) ** 2).sum())
        own = (known + 2 * WEAK) / (float((found**2).sum()) + 2 * WEAK)
        noise = (len(gains) - known + 2 * WEAK) / (left + 2 * WEAK)
    spread = ((centred @ axes) ** 2 / (own + noise * strengths)).sum(axis=1)
    return centred @ found, np.sqrt(spread)
