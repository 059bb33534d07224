"""How the best value and the leading values changed as trials came in: the first value of each parameter after 1/8,
2/8, ... of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from studies.insights.history import History
from studies.insights.values import TOP, confidence, good, levels, posterior

POINTS = 8
DOTS = 500
"""Most trials that are drawn one by one."""
COLUMNS = ("trials", "parameter", "group", "value", "score", "low", "high", "confidence", "best")


def trends(history: History, top: float = TOP) -> pd.DataFrame:
    """A row a parameter and number of trials; `best` is the best value until then; `COLUMNS`.

    Values are those of the whole history, so that bins stay the same.
    """
    kept = history.feasible
    gains, values = kept["gain"].to_numpy(dtype=float), kept["value"].to_numpy(dtype=float)
    found = {name: levels(p, kept[f"params_{name}"]) for name, p in history.parameters.items()}
    counts = sorted({round(len(kept) * (i + 1) / POINTS) for i in range(POINTS)} - {0})
    rows: list[dict[str, Any]] = []
    for until in counts:
        chosen, _ = good(gains[:until], top)
        best = float(values[:until][np.argmax(gains[:until])])
        for name, own in found.items():
            member = own.member[:until]
            read = member.any(axis=1)
            if not read.any():
                continue
            tried, hits = member.sum(axis=0), (member & chosen[:, None]).sum(axis=0)
            score, low, high = posterior(tried, hits, float(chosen[read].mean()))
            lead = max(range(len(own.labels)), key=lambda v: (confidence(int(tried[v])) != "low", tried[v] > 0, low[v]))
            rows.append(
                {
                    "trials": until,
                    "parameter": name,
                    "group": history.parameters[name].group,
                    "value": own.labels[lead],
                    "score": float(score[lead]),
                    "low": float(low[lead]),
                    "high": float(high[lead]),
                    "confidence": confidence(int(tried[lead])),
                    "best": best,
                }
            )
    return pd.DataFrame(rows, columns=list(COLUMNS))


def course(history: History) -> pd.DataFrame:
    """The best feasible value until then: a row where it changed, and the last finished trial; trials, number,
    seconds, best.

    `trials`: how many trials had ended; `number`: of the last of them, counted from 0; `seconds`: that all of them ran.
    """
    trials = history.trials
    best = trials["gain"].where(trials["feasible"]).cummax()
    changed = best.notna() & (best != best.shift())
    if changed.any():
        changed.iloc[-1] = True
    sign = 1.0 if history.maximize else -1.0
    ended = np.arange(1, len(trials) + 1)[changed.to_numpy(dtype=bool)]
    told = {"trials": ended, "number": trials.loc[changed, "number"], "seconds": _spent(history)[changed]}
    told = {name: np.asarray(column) for name, column in told.items()}
    return pd.DataFrame({**told, "best": sign * best[changed].to_numpy(dtype=float)})


def points(history: History) -> pd.DataFrame:
    """Every complete trial, in order; columns number, seconds (that trials had run in all), value,
    feasible. At most `DOTS` of them, evenly."""
    complete = history.trials.assign(seconds=_spent(history))[history.trials["value"].notna()]
    if len(complete) > DOTS:
        complete = complete.iloc[np.unique(np.linspace(0, len(complete) - 1, DOTS).round().astype(int))]
    return complete[["number", "seconds", "value", "feasible"]]


def _spent(history: History) -> pd.Series:
    """Seconds that trials had run in all when each ended."""
    return history.trials["seconds"].astype(float).fillna(0).cumsum().round(3)
