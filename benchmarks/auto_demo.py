"""`chamtune auto` on the planted world and on its null twin: is the gain found, and the planted order told?

    python benchmarks/auto_demo.py [--minutes 20] [--seeds 101 102 103] [--alone steering lora-groups]
    python benchmarks/auto_demo.py --world demo-null [--minutes 3] [--seeds 101 102 ... 110]

Each seed draws its own users, and each world has the model that knows it. `--alone`: each of these arms is also run by
itself, an ordinary study of as many minutes and its promotion, to be compared with in hindsight. `order`: of two arms
that the world was planted to tell apart, whether the report has them so on the users that both are judged on (`select`:
gains on select users); null where one of them has no result. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import optuna

from chamtune import Auto
from studies.auto.arms import ARMS
from studies.runner import run_study
from studies.study import open_study
from studies.verdict.promotion import promote

PLANTED = (("steering", "calibration"), ("prompt", "calibration"), ("lora-groups", "lora"), ("lora", "calibration"))
"""(arm that the world is planted for, arm that cannot know as much): readings of groups show in histories alone, and
insider cues are learned from many."""


def raced(world: str, seed: int, minutes: float, home: Path) -> tuple[Auto, dict[str, Any]]:
    """(the race, what it came to)."""
    started = time.monotonic()
    auto = Auto(world, world, minutes, home=home, more={"seed": seed, "tracking": "none"})
    found = auto.run(home / "deploy", say=lambda line: print(line, flush=True)).result
    assert found is not None
    arms = {arm["arm"]: arm for arm in found["arms"]}
    order = {f"{better} > {worse}": ordered(arms.get(better), arms.get(worse)) for better, worse in PLANTED}
    confirm = found["confirm"] or {}
    row = {
        "seed": seed,
        "arm": found["leader"],
        "promoted": found["promoted"],
        "reason": found["reason"],
        "accuracy": confirm.get("accuracy"),
        "baseline": confirm.get("baseline_accuracy"),
        "seconds": round(time.monotonic() - started, 1),
        "counted_s": found["spent_s"],
        "arms": {name: arm["gain"] for name, arm in arms.items()},
        "select": {name: arm["select"] and round(arm["select"]["delta"], 4) for name, arm in arms.items()},
        "order": order,
    }
    return auto, row


def ordered(better: dict[str, Any] | None, worse: dict[str, Any] | None) -> bool | None:
    """Whether an arm gains more than another, on the users that both are judged on."""
    if better is None or worse is None or better["gain"] is None or worse["gain"] is None:
        return None
    if better["judged_on"] == worse["judged_on"]:
        return bool(better["gain"] > worse["gain"])
    return bool(better["select"]["delta"] > worse["select"]["delta"])


def alone(auto: Auto, name: str, minutes: float, home: Path) -> dict[str, Any]:
    """One arm as a study of as many minutes, and what it confirms."""
    spec = auto.plan.spec_of(ARMS[name], "causal").model_copy(update={"timeout_s": 60 * minutes, "trials": 10_000})
    run_study(spec, home)
    result = promote(open_study(spec, home), home / f"deploy-{name}", with_cold_start=False)
    return {"promoted": result["promoted"], "accuracy": (result["confirm"] or {}).get("accuracy")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--world", default="demo", choices=["demo", "demo-null"])
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--seeds", type=int, nargs="+", default=[101, 102, 103])
    parser.add_argument("--alone", nargs="+", default=[], choices=sorted(ARMS), metavar="ARM")
    parser.add_argument("--home", type=Path, default=None, help="keeps the home folders")
    given = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for seed in given.seeds:
            home = (given.home or Path(folder)) / f"{given.world}-{seed}"
            auto, row = raced(given.world, seed, given.minutes, home)
            row["alone"] = {name: alone(auto, name, given.minutes, home / "alone" / name) for name in given.alone}
            rows.append(row)
            print(row, flush=True)
    promoted = sum(row["promoted"] for row in rows)
    print(json.dumps({"world": given.world, "minutes": given.minutes, "promoted": promoted, "seeds": rows}))


if __name__ == "__main__":
    main()
