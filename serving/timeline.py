"""How a log's figures went, for a page: accuracy and constraints part by part, and the comparison look by look."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from personalization.metrics import metrics_of
from serving.monitor import ALONE, Watched, compared, looks

PARTS, LOOKS = 40, 60
"""At most; of answers, and of labels."""
FEWEST = 10
"""Answers of a part."""


def course(found: Watched) -> dict[str, Any]:
    """JSON-able: the figures of successive `parts` of all answers, oldest first, and of `looks` at the comparison."""
    return {"parts": _parts(found), "looks": _looks(found)}


def _parts(found: Watched) -> list[dict[str, Any]]:
    """Of each part: end, time, generations, estimate and accuracy (None without a label), and what is constrained."""
    traffic, whole = found.traffic, len(found.traffic)
    told = found.config["provenance"].get("spec", {}).get("constraints", {})
    metrics = [name for name in told if name in metrics_of(traffic.labels)]
    top, out = np.exp(traffic.log_probs.max(axis=1)), list[dict[str, Any]]()
    for begin, end in pairwise(np.linspace(0, whole, 1 + max(1, min(PARTS, whole // FEWEST)), dtype=np.int64)):
        rows = np.arange(begin, end)
        labelled = rows[traffic.gold[rows] >= 0]
        out.append(
            {
                "end": int(end),
                "at": traffic.times[end - 1],
                "generations": np.unique(traffic.generations[rows]).tolist(),
                "estimate": round(float(top[rows].mean()), 4),
                "accuracy": _measured(found, labelled, "accuracy"),
                "labelled": len(labelled),
                "constraints": {name: _measured(found, rows if name in ALONE else labelled, name) for name in metrics},
            }
        )
    return out


def _measured(found: Watched, rows: NDArray[np.int64], metric: str) -> float | None:
    traffic, measure = found.traffic, metrics_of(found.traffic.labels)[metric].measure
    return (
        round(measure(traffic.log_probs[rows], traffic.predicted[rows], traffic.gold[rows]), 4) if len(rows) else None
    )


def _looks(found: Watched) -> list[dict[str, Any]]:
    """Of each look with an interval: labels until then, mean and interval."""
    pairs = compared(found.traffic, found.own, found.labelled)
    if pairs is None:
        return []
    whole = len(pairs.users)
    places = np.unique(np.linspace(0, whole, min(LOOKS, whole) + 1, dtype=np.int64)[1:]).tolist()
    return [
        {"labels": place, "mean": round(one.mean, 4), "low": round(one.low, 4), "high": round(one.high, 4)}
        for place, one in zip(places, looks(pairs, places), strict=True)
        if np.isfinite([one.low, one.high]).all()
    ]
