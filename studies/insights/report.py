"""All insights of a history at once: DataFrames by name, and as one JSON-able object."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd

from studies.insights.history import GROUPS, History
from studies.insights.importance import feasibility_importance, importance, of_optuna
from studies.insights.likely import likely
from studies.insights.pairs import cells, interactions
from studies.insights.price import box, constraint_prices, price_curve
from studies.insights.slices import space
from studies.insights.suggestions import suggestions
from studies.insights.trends import course, points, trends
from studies.insights.values import COLUMNS, TOP, good, value_scores

Frames = dict[str, pd.DataFrame]
BEST = 10
"""Likely values that are shown."""
FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""How a text begins that a spreadsheet takes for a formula."""
STATES = {"complete": "COMPLETE", "pruned": "PRUNED", "failed": "FAIL"}
"""How a trial ends: what it is called -> Optuna's name."""
BEYOND = np.errstate(over="ignore", invalid="ignore")
"""What is more than a float holds is told as it comes out, infinite or not at all."""
NAMES = (
    "scores", "course", "importance", "feasibility", "interactions", "cells", "trends", "likely", "prices", "curve",
    "box", "suggestions", "space",
)  # fmt: skip


@BEYOND
def insights_of(
    found: History, top: float = TOP, evaluator: str | None = None, path: dict[str, Any] | None = None
) -> Frames:
    """Every table of `NAMES`. `evaluator`: one of Optuna's importances, as a further column of its name.

    The box is within one standard error of the best: that by user which a measured `path` knows, else that of the best
    trial's likely value.
    """
    scores, matters, shrunken = value_scores(found, top), importance(found, top), likely(found)
    if evaluator is not None:
        matters[evaluator] = matters["parameter"].map(of_optuna(found, evaluator))
    pairs = interactions(found, top)
    lead = pairs.iloc[0] if len(pairs) else None
    error = None if path is None else path.get("error")
    if error is None:
        error = float(shrunken.loc[shrunken["rank"].idxmin(), "error"]) if len(shrunken) else 0.0
    made = suggestions(found, scores, matters, shrunken)
    return {
        "scores": scores,
        "course": course(found),
        "importance": matters,
        "feasibility": feasibility_importance(found),
        "interactions": pairs,
        "cells": cells(found, lead["first"], lead["second"], top) if lead is not None else pd.DataFrame(),
        "trends": trends(found, top),
        "likely": shrunken,
        "prices": constraint_prices(found),
        "curve": price_curve(found),
        "box": box(found, error),
        "suggestions": pd.DataFrame([one._asdict() for one in made], columns=["kind", "change", "reason", "params"]),
        "space": space(found),
    }


@BEYOND
def summary(found: History, top: float = TOP) -> dict[str, Any]:
    """Counts, in all and by how trials ended, the threshold from which a trial is good, and the best trial."""
    kept = found.feasible
    chosen, limit = good(kept["gain"].to_numpy(dtype=float), top)
    sign = 1.0 if found.maximize else -1.0
    best = None
    if len(kept):
        row = kept.loc[kept["gain"].idxmax()]
        named = {name: row[f"params_{name}"] for name in found.parameters}
        there = {k: v for k, v in named.items() if v is not None and not (isinstance(v, float) and math.isnan(v))}
        best = {"trial": int(row["number"]), "value": float(row["value"]), "params": there}
        best |= {"study": row["study"]} if "study" in row else {}
    ended = found.trials["state"].value_counts()
    return {
        "study": found.name,
        "metric": found.metric,
        "direction": "maximize" if found.maximize else "minimize",
        "foreign": found.foreign,
        "goals": list(found.goals),
        "total_experiments": len(found.trials),
        **{f"{state}_experiments": int(ended.get(name, 0)) for state, name in STATES.items()},
        "feasible_experiments": len(kept),
        "good_experiments": int(chosen.sum()),
        "good_threshold": sign * limit if len(kept) else None,
        "top": top,
        "best": best,
    }


def as_json(found: History, frames: Frames, top: float = TOP) -> dict[str, Any]:
    """One object: `summary`, `analysis` (group -> parameters -> values), and every other table as a list of
    rows, with the complete trials as `points`."""
    analysis: dict[str, list[dict[str, Any]]] = {}
    for name, own in frames["scores"].groupby("parameter", sort=False):
        values = own[[column for column in COLUMNS if column not in ("parameter", "group")]].to_dict("records")
        known, measured = {**found.parameters, **found.fields}[name], name in found.fields
        entry = {"param": title(name), "field": name, "items": known.items, "measured": measured, "values": values}
        analysis.setdefault(known.group, []).append(entry)
    places = dict(zip(GROUPS, range(len(GROUPS)), strict=True))
    ordered = {group: analysis[group] for group in sorted(analysis, key=lambda group: places.get(group, len(GROUPS)))}
    tables = {name: frames[name].to_dict("records") for name in NAMES if name != "scores"}
    tables["likely"] = tables["likely"][:BEST]
    tables["points"] = points(found).to_dict("records")
    result: dict[str, Any] = plain({"success": True, **summary(found, top), "analysis": ordered, **tables})
    return result


def title(name: str) -> str:
    """A parameter's name as a heading."""
    return name.replace("_", " ").replace(".", ": ")


def harmless(value: Any) -> Any:
    """A cell of CSV: a text that a spreadsheet would take for a formula gets an apostrophe in front; numbers, and the
    ends of a bin, stay."""
    if not isinstance(value, str) or not value.startswith(FORMULA) or all(map(_is_numeral, value.split(" to "))):
        return value
    return f"'{value}"


def _is_numeral(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return text == text.strip()


def plain(value: Any) -> Any:
    """A value that JSON knows; what is not finite is null."""
    if isinstance(value, dict):
        return {str(key): plain(given) for key, given in value.items()}
    if isinstance(value, list | tuple):
        return [plain(given) for given in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
