"""Does monitoring raise false alarms, and how soon does it see a drop?

    python benchmarks/monitoring.py [--worlds 400] [--users 500] [--batches 1000]

Two configs answer the same questions of `--users` users, one question a batch and user drawn at random, 20 a batch, and
each answer gets its label. A user has an own accuracy, and an own difference between the configs. Without a difference
(A/A: of every user, or on the mean over users alone) the verdict is looked at after each batch; beside it a paired
t-test over users, repeated at each look. With a drop of 2, 5 or 10 points: the share of worlds in which it is found,
and after how many labels. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

import numpy as np
from scipy import stats

from tracking.sequence import Tiers, paired

PER_BATCH = 20
ALPHA = 0.05
SPREAD = 0.10
"""Standard deviation over users of the difference between the configs."""
CHANGED = 0.2
"""Share of the questions on which one of the two is right and the other is not."""


def world(rng: np.random.Generator, users: int, drop: float, spread: float) -> np.ndarray:
    """The mean difference of each user, drawn anew around -drop."""
    return np.clip(rng.normal(-drop, spread, users), -CHANGED, CHANGED)


def look_by_look(rng: np.random.Generator, means: np.ndarray, batches: int) -> tuple[int | None, int | None]:
    """(labels until the sequence excludes 0, labels until a repeated t-test does); None: never."""
    tiers, users = Tiers(), len(means)
    counts, sums = np.zeros(users), np.zeros(users)
    ours = naive = None
    for batch in range(1, batches + 1):
        asked = rng.integers(0, users, PER_BATCH)
        draws = rng.random(PER_BATCH)
        right, wrong = (CHANGED + means[asked]) / 2, (CHANGED - means[asked]) / 2
        values = np.where(draws < right, 1.0, np.where(draws < right + wrong, -1.0, 0.0))
        for user, value in zip(asked, values, strict=True):
            tiers.add(str(user), float(value))
        np.add.at(counts, asked, 1)
        np.add.at(sums, asked, values)
        if ours is None:
            found = paired(tiers, ALPHA)
            ours = batch * PER_BATCH if found.low > 0 or found.high < 0 else None
        known = counts > 0
        if naive is None and known.sum() >= 20:
            seen = sums[known] / counts[known]
            deviation = seen.std(ddof=1)
            apart = abs(seen.mean()) * np.sqrt(known.sum()) / deviation if deviation else 0.0
            naive = batch * PER_BATCH if apart > stats.norm.isf(ALPHA / 2) else None
        if ours is not None and naive is not None:
            break
    return ours, naive


def of_worlds(options: argparse.Namespace, drop: float, spread: float, seed: int) -> dict[str, Any]:
    """Shares of worlds with an alarm, and the median of labels until then."""
    found = []
    for number in range(options.worlds):
        rng = np.random.default_rng([seed, number])
        found.append(look_by_look(rng, world(rng, options.users, drop, spread), options.batches))
    ours = [labels for labels, _ in found if labels is not None]
    return {
        "found": round(len(ours) / len(found), 3),
        "repeated_test": round(sum(naive is not None for _, naive in found) / len(found), 3),
        "median_labels": int(np.median(ours)) if ours else None,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worlds", type=int, default=400)
    parser.add_argument("--users", type=int, default=500)
    parser.add_argument("--batches", type=int, default=1000)
    options = parser.parse_args()
    result: dict[str, Any] = vars(options).copy()
    for name, drop, spread in (
        ("aa", 0.0, 0.0),
        ("aa_users_differ", 0.0, SPREAD),
        ("drop_2", 0.02, SPREAD),
        ("drop_5", 0.05, SPREAD),
        ("drop_10", 0.10, SPREAD),
    ):
        result[name] = of_worlds(options, drop, spread, seed=0)
        print(name, result[name], flush=True)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
