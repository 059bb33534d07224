"""Who gains and who loses: the effect of a candidate user by user."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.stats import entropy

from personalization.evaluation import Evaluation
from tracking.significance import gains_by_user, user_totals

MAJOR_GAIN = 0.15
"""Gain in a user's accuracy from which it counts as major."""


def concentration(evaluation: Evaluation) -> dict[str, float]:
    """Share of users with one predicted label, and with more than 80 % of predictions on one, and their mean spread."""
    users, rows = evaluation.users
    counts = np.zeros((len(users), len(evaluation.labels)))
    np.add.at(counts, (rows, evaluation.predicted), 1)
    shares = counts / counts.sum(axis=1, keepdims=True)
    top = shares.max(axis=1)
    return {
        "one_label": float((top == 1).mean()),
        "over_80_percent_one_label": float((top > 0.8).mean()),
        "mean_entropy": float(entropy(counts, base=2, axis=1).mean()),
        "mean_top1_share": float(top.mean()),
    }


def impact(baseline: Evaluation, candidate: Evaluation) -> dict[str, Any]:
    """Concentration before and after, users by gain, and the users who would be better off with a milder setting."""
    users, _ = candidate.users
    gains, sizes = gains_by_user(baseline, candidate)
    gain = gains / sizes
    before, _ = user_totals(baseline, baseline.correct)
    milder = sorted(
        (
            {"user_id": users[i], "gain": float(gain[i]), "before": float(before[i] / sizes[i])}
            for i in np.flatnonzero(gain < 0)
        ),
        key=lambda row: (row["gain"], row["user_id"]),
    )
    return {
        "users": len(users),
        "before": concentration(baseline),
        "after": concentration(candidate),
        "by_gain": {
            "major": int((gain >= MAJOR_GAIN).sum()),
            "moderate": int(((gain > 0) & (gain < MAJOR_GAIN)).sum()),
            "unchanged": int((gain == 0).sum()),
            "worse": int((gain < 0).sum()),
        },
        "major_gain_from": MAJOR_GAIN,
        "user_gain_quantiles": {f"p{q}": float(np.quantile(gain, q / 100)) for q in (10, 50, 90)},
        "needs_milder_setting": milder,
    }
