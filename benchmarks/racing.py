"""Is the race of `chamtune auto` honest, and does it pay?

equal     five arms without a difference on users with effects of their own: how often the smallest corrected p of
          the table is below .05 (at most .06 wanted)
routing   on the equal arms, with features that say nothing: how often the interval of its gain covers 0 (at least
          .95 wanted), and the gain that the oracle promises where there is none
better    one arm is 3 points better than the next, others are worse: how often a race finds it at the cost at which
          equal shares do, a block of users being the unit of cost
resumed   the same races interrupted after every slice: how many end otherwise

python benchmarks/racing.py [--worlds 1000]
"""

from __future__ import annotations

import argparse
import json

import numpy as np

from studies.auto.allocation import Standing, following, leader
from studies.auto.routing import routed
from tracking.significance import holm, sign_flip

USERS, QUESTIONS, BLOCK, BASE = 120, 5, 12, 0.5
SIZES = np.full(USERS, QUESTIONS)
ARMS = {"best": 0.08, "next": 0.05, "third": 0.0, "fourth": -0.03, "fifth": -0.05}


def world(random: np.random.Generator, gains: list[float]) -> np.ndarray:
    """Correct answers [arms + 1, U] of the baseline and arms: a user's ease is shared, and each arm likes users."""
    ease = random.normal(0, 0.15, USERS)
    rows = []
    for gain in (0.0, *gains):
        chance = np.clip(BASE + gain + ease + random.normal(0, 0.1, USERS), 0.02, 0.98)
        rows.append(random.binomial(QUESTIONS, chance))
    return np.array(rows, dtype=float)


def standings(right: np.ndarray, seen: dict[str, int]) -> list[Standing]:
    """How arms stand after so many blocks each."""
    found = []
    for row, (name, blocks) in enumerate(seen.items(), start=1):
        if blocks:
            gains = right[row] - right[0]
            gains[blocks * BLOCK :] = np.nan
            found.append(Standing(name, gains, float(blocks), 0.0, blocks * BLOCK >= USERS))
    return found


def race(right: np.ndarray, budget: int, seen: dict[str, int] | None = None, stop: int | None = None) -> dict[str, int]:
    """Blocks that each arm has had when the budget is spent, or after `stop` slices."""
    seen = dict.fromkeys(ARMS, 0) if seen is None else dict(seen)
    done = 0
    while sum(seen.values()) < budget and (stop is None or done < stop):
        fresh = next((name for name, blocks in seen.items() if not blocks), None)
        if fresh is None:
            arm = following(standings(right, seen), SIZES)
            if arm is None:
                break
            fresh = arm.name
        seen[fresh] += 1
        done += 1
    return seen


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--worlds", type=int, default=1000)
    worlds = parser.parse_args().worlds
    random = np.random.default_rng(0)
    small, raced, shared, otherwise, covered, promised = 0, 0, 0, 0, 0, 0.0
    budget = 5 * len(ARMS)
    for number in range(worlds):
        right = world(random, [0.0] * 5)
        small += min(holm([sign_flip(right[arm] - right[0]) for arm in range(1, 6)])) < 0.05
        gains = right[1:] - right[0]
        best = int(gains.sum(axis=1).argmax())
        told = random.normal(size=(USERS, 2))
        low, high = routed(gains, SIZES, told).interval
        covered += low <= 0 <= high
        promised += float((gains.max(axis=0) - gains[best]).sum() / SIZES.sum())
        right = world(random, list(ARMS.values()))
        ended = race(right, budget)
        raced += leader(standings(right, ended), SIZES).name == "best"
        equal = dict.fromkeys(ARMS, budget // len(ARMS))
        shared += leader(standings(right, equal), SIZES).name == "best"
        steps: dict[str, int] | None = None
        for _ in range(budget):
            steps = race(right, budget, steps, stop=1)
        otherwise += steps != ended
        if (number + 1) % 100 == 0:
            print(f"{number + 1}: corrected p < .05 {small}, race {raced}, equal shares {shared}", flush=True)
    print(
        json.dumps(
            {
                "worlds": worlds,
                "equal_arms_corrected_p_below_05": small / worlds,
                "routing_covers_0": covered / worlds,
                "oracle_promises": round(promised / worlds, 4),
                "race_finds_the_best": raced / worlds,
                "equal_shares_find_the_best": shared / worlds,
                "interrupted_races_that_end_otherwise": otherwise,
            }
        )
    )


if __name__ == "__main__":
    main()
