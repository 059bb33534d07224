"""What the constraints cost, and how much room the best setting leaves."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from optuna.trial import TrialState

from studies.insights.history import History, is_number

CURVE = 40
"""Most points of a curve."""
PRICES = ("constraint", "bound", "side", "with_it", "without_it", "price", "binds")
CURVES = ("constraint", "violation", "bound", "best")


def _reached(history: History, name: str) -> pd.DataFrame:
    """Complete trials that keep all constraints but this one, the most obedient first."""
    complete = history.trials[history.trials["state"] == TrialState.COMPLETE.name]
    others = [f"constraints_{other}" for other in history.constraints if other != name]
    kept = complete[~(complete[others] > 0).any(axis=1)] if others else complete
    return kept.dropna(subset=f"constraints_{name}").sort_values(f"constraints_{name}", kind="stable")


def constraint_prices(history: History) -> pd.DataFrame:
    """A row a constraint: the best value with it and without it, among the trials; `price` is the gain it costs,
    `side` whether the bound is an upper (<=) or a lower one (>=)."""
    rows: list[dict[str, Any]] = []
    for name in history.constraints:
        reached = _reached(history, name)
        inside = reached[reached[f"constraints_{name}"] <= 0]
        if not len(inside):
            continue
        with_it, without = (float(part["gain"].max()) for part in (inside, reached))
        sign = 1.0 if history.maximize else -1.0
        bound = history.bounds.get(name)
        rows.append(
            {
                "constraint": name,
                "bound": None if bound is None else bound.bound,
                "side": None if bound is None else "<=" if bound.sign > 0 else ">=",
                "with_it": sign * with_it,
                "without_it": sign * without,
                "price": without - with_it,
                "binds": without > with_it,
            }
        )
    return pd.DataFrame(rows, columns=list(PRICES))


def price_curve(history: History) -> pd.DataFrame:
    """For each constraint the best value that trials reach under tighter and looser bounds; `bound` in its own units
    where it is known."""
    rows: list[dict[str, Any]] = []
    sign = 1.0 if history.maximize else -1.0
    for name in history.constraints:
        reached = _reached(history, name)
        reached = reached[np.abs(reached[f"constraints_{name}"]) < 1e8]
        best = np.maximum.accumulate(reached["gain"].to_numpy(dtype=float))
        slack = reached[f"constraints_{name}"].to_numpy(dtype=float)
        steps = np.flatnonzero(np.diff(best, prepend=-np.inf) > 0)
        if len(steps) > CURVE:
            steps = steps[np.unique(np.linspace(0, len(steps) - 1, CURVE).round().astype(int))]
        known = history.bounds.get(name)
        for at in steps:
            bound = None
            if known is not None:
                bound = known.bound + known.sign * slack[at] * (abs(known.bound) or 1.0)
            rows.append({"constraint": name, "violation": slack[at], "bound": bound, "best": sign * best[at]})
    return pd.DataFrame(rows, columns=list(CURVES))


BOXES = ("parameter", "group", "best", "low", "high", "values", "tried", "inside")


def box(history: History, error: float) -> pd.DataFrame:
    """The settings within `error` (one standard error) of the best feasible value, a row a parameter: range or values.

    `inside` of the `tried` feasible trials that read the parameter are there. A parameter whose box is its whole range
    can be set freely near the best; it is no claim about corners of the box that no trial was in.
    """
    kept = history.feasible
    if not len(kept):
        return pd.DataFrame(columns=list(BOXES))
    near = kept[kept["gain"] >= kept["gain"].max() - error]
    top = kept.loc[kept["gain"].idxmax()]
    rows: list[dict[str, Any]] = []
    for name, parameter in history.parameters.items():
        column = near[f"params_{name}"].dropna()
        if parameter.items or not len(column):
            continue
        numbers = all(map(is_number, column))
        row = {"parameter": name, "group": parameter.group, "best": top[f"params_{name}"], "low": None, "high": None}
        if numbers:
            row |= {"low": column.min(), "high": column.max(), "values": None}
        else:
            row["values"] = ", ".join(sorted({str(v) for v in column}))
        rows.append({**row, "tried": int(kept[f"params_{name}"].notna().sum()), "inside": len(column)})
    return pd.DataFrame(rows, columns=list(BOXES))
