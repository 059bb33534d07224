"""Likely best, not luckiest: each trial's value shrunk towards what trials with the same values reach.

The best of many noisy values is best partly by luck. Values are taken as a sum of effects of the parameters' values
(those of `values`, Bayesian ridge regression: MacKay 1992, strengths of effects and noise by evidence) plus noise; the
posterior mean of a trial is its likely value, and `error` the standard deviation of that mean. What parameters do only
together counts as noise here, so that the likely value of a real lone peak is too low: it is shown beside the raw one,
never in its place.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from studies.insights.history import History
from studies.insights.values import levels

if TYPE_CHECKING:
    import pandas as pd

ENOUGH = 10
COLUMNS = ("number", "value", "likely", "error", "rank", "likely_rank")


def likely(history: History) -> pd.DataFrame:
    """A row a feasible trial, the likely best first; `COLUMNS`. Under ten trials nothing is shrunk."""
    from sklearn.linear_model import BayesianRidge

    kept = history.feasible
    values = kept["value"].to_numpy(dtype=float)
    found = [levels(p, kept[f"params_{name}"]).member for name, p in history.parameters.items()]
    effects = np.hstack([np.zeros((len(kept), 0)), *(member for member in found if member.shape[1] > 1)])
    mean, error = values, np.zeros(len(kept))
    if len(kept) >= ENOUGH and effects.shape[1] and np.ptp(values) > 0:
        scale = float(values.std())
        model = BayesianRidge().fit(effects, (values - values.mean()) / scale)
        given, spread = model.predict(effects, return_std=True)
        mean = values.mean() + scale * given
        error = scale * np.sqrt(np.maximum(spread**2 - 1 / model.alpha_, 0))
    frame = kept[["number", "value"]].assign(likely=mean, error=error)
    frame["rank"] = (-kept["gain"]).rank(method="first").astype(int)
    sign = 1.0 if history.maximize else -1.0
    frame["likely_rank"] = (-sign * frame["likely"]).rank(method="first").astype(int)
    return frame.sort_values("likely_rank", ignore_index=True)[list(COLUMNS)]
