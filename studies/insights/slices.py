"""What was searched, and the value of trials against one parameter each, of which a few hundred show the shape."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from optuna.distributions import CategoricalDistribution

from studies.insights.history import History, Parameter, choice_of, is_number, there

MOST, LEADING = 300, 60
"""Most trials of a slice, and how many of them are the best; the others are spread evenly over the rest."""
AGES = 5
"""Parts of the history that are told apart."""
CHOICES = 12
"""Most choices that stand as columns."""
GOLDEN = (5**0.5 - 1) / 2
SPACES = (
    "parameter", "group", "kind", "low", "high", "step", "log", "choices", "read_when", "distinct", "trials",
)  # fmt: skip


class Slice(NamedTuple):
    """Trials by one parameter. `at`, `values`: float [n]; `ages`: int [n], 0 the first of `AGES` parts; `feasible`:
    bool [n]; `best`: the place of the best feasible one, whose number is `number` and setting `setting`.

    `columns`: names of choices, which stand at 0, 1, ...; `left`: how many trials are left out.
    """

    at: NDArray[np.float64]
    values: NDArray[np.float64]
    ages: NDArray[np.int64]
    feasible: NDArray[np.bool_]
    best: int | None
    number: int | None
    setting: Any
    log: bool
    columns: list[str]
    left: int


def space(history: History) -> pd.DataFrame:
    """A row a parameter: kind (float, int, choice), range or choices, `read_when`, the number of `distinct` values that
    finished trials read, and of these trials."""
    rows = []
    for name, known in history.parameters.items():
        if known.distribution is None:
            continue
        told, column = known.distribution, history.trials[f"params_{name}"].dropna()
        choices = list(told.choices) if isinstance(told, CategoricalDistribution) else None
        kind = "choice" if choices is not None else type(told).__name__.removesuffix("Distribution").lower()
        ends = {end: getattr(told, end, None) for end in ("low", "high", "step")}
        own = {"kind": kind, **ends, "log": getattr(told, "log", False), "choices": choices}
        counts = {"read_when": known.read_when, "distinct": column.nunique(), "trials": len(column)}
        rows.append({"parameter": name, "group": known.group, **own, **counts})
    return pd.DataFrame(rows, columns=list(SPACES), dtype=object)


def slices(history: History) -> dict[str, Slice]:
    """Parameter -> the complete trials that read it, at most `MOST`; only of numbers, and of few choices."""
    complete = history.trials[history.trials["value"].notna()]
    found = {}
    for name, known in history.parameters.items():
        placed = _placed(known, complete[f"params_{name}"])
        if placed is not None and (made := _slice(known, complete, *placed)) is not None:
            found[name] = made
    return found


def _placed(parameter: Parameter, column: pd.Series) -> tuple[NDArray[np.float64], list[str]] | None:
    """Where each trial stands across, NaN where it did not read the parameter, and the names of columns."""
    told = parameter.distribution
    if told is None:
        return None
    if not isinstance(told, CategoricalDistribution):
        return pd.to_numeric(column, errors="coerce").to_numpy(dtype=float), []
    held = [there(choice) for choice in told.choices]
    tried = [value for value in column.dropna().unique() if value in held]
    if not 0 < len(tried) <= CHOICES:
        return None
    numbers = all(map(is_number, tried))
    tried = sorted(tried, key=lambda value: (value if numbers else 0, held.index(value)))
    at = np.full(len(column), np.nan)
    for place, value in enumerate(tried):
        at[(column == value).to_numpy(dtype=bool)] = place
    return at, [str(choice_of(told, value)) for value in tried]


def _slice(parameter: Parameter, complete: pd.DataFrame, at: NDArray[np.float64], columns: list[str]) -> Slice | None:
    read = np.flatnonzero(np.isfinite(at))
    if not len(read):
        return None
    feasible = complete["feasible"].to_numpy(dtype=bool)
    gains = np.where(feasible, complete["gain"].to_numpy(dtype=float), -np.inf)[read]
    kept = read[_shown(gains)]
    lead = int(read[np.argmax(gains)]) if np.isfinite(gains).any() else None
    row = None if lead is None else complete.iloc[lead]
    log = bool(getattr(parameter.distribution, "log", False)) and bool((at[read] > 0).all())
    aside = ((kept * GOLDEN) % 1 - 0.5) * 0.6 if columns else 0.0
    return Slice(
        at[kept] + aside,
        complete["value"].to_numpy(dtype=float)[kept],
        kept * AGES // len(complete),
        feasible[kept],
        None if lead is None else int(np.flatnonzero(kept == lead)[0]),
        None if row is None else int(row["number"]),
        None if row is None else row[f"params_{parameter.name}"],
        log,
        columns,
        len(read) - len(kept),
    )


def _shown(gains: NDArray[np.float64]) -> NDArray[np.int64]:
    """Places of the trials that are shown, in order, by their gains, float [n]."""
    if len(gains) <= MOST:
        return np.arange(len(gains))
    leading = np.argsort(-gains, kind="stable")[:LEADING]
    rest = np.setdiff1d(np.arange(len(gains)), leading)
    spread = rest[np.linspace(0, len(rest) - 1, MOST - LEADING).round().astype(int)]
    return np.sort(np.concatenate([leading, spread]))
