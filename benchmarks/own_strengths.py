"""Do strengths of each user's own (`calibration.per_user`) help on the planted world, and hurt on its null twin?

    python benchmarks/own_strengths.py [--seeds 0 1 2] [--worlds demo demo-null] [--home DIR]

Each seed draws its own users. Calibrations at fixed settings, beta, gamma and tau solved on the tune users, are judged
on the confirm users; gains over the same calibration with common strengths, by user, over all seeds. The last line is
JSON.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from objectives.classification import Classification
from personalization.methods.taste.own import NAMES, helped
from search_spaces import chain_space
from studies.spec import load_spec
from studies.study import open_study

SOLVED = {"calibration.fit": "exact", "calibration.kappa": 5.0}
PRIORS: dict[str, dict[str, Any]] = {
    "user": {"calibration.prior_mode": "user"},
    "similar": {"calibration.prior_mode": "similar", "calibration.ranking": "bm25", "calibration.width": 0.3},
}


def gains(world: str, seed: int, home: Path) -> dict[str, dict[str, Any]]:
    """prior, strengths -> whether they are used, how users differ, and what each confirm question gains."""
    spec = load_spec("demo", {"tracking": "none", "seed": seed, "name": f"own-{world}-{seed}", "data": {"path": world}})
    opened = open_study(spec, home)
    space = chain_space(("calibration",))
    objective, found = Classification(space, opened.splits, opened.scorer), {}
    for prior, settings in PRIORS.items():
        seen = {}
        for strengths in NAMES:
            params = space.of_full({**SOLVED, **settings, "calibration.per_user": strengths})
            seen[strengths] = objective.evaluate(params, "confirm")
            apart = objective.fitted(params).learned["calibration"].apart
            if strengths == "none":
                continue
            rows, common = np.arange(len(seen["none"].gold)), seen["none"]
            found[f"{prior}, {strengths}"] = {
                "used": [one.name for one in apart if one.used],
                "spreads": {one.name: one.spread for one in apart},
                "users": [f"{seed}/{user}" for user in common.user_ids],
                "accuracy": seen[strengths].correct.astype(float) - common.correct,
                "nats": (seen[strengths].log_probs - common.log_probs)[rows, common.gold],
            }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--worlds", nargs="+", default=["demo", "demo-null"])
    parser.add_argument("--home", type=Path, default=None)
    given = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for world in given.worlds:
            seen = [gains(world, seed, given.home or Path(folder)) for seed in given.seeds]
            for name in seen[0]:
                own = [one[name] for one in seen]
                users = [user for one in own for user in one["users"]]
                told = {"world": world, "strengths": name, "used": [one["used"] for one in own]}
                told |= {"spreads": [one["spreads"] for one in own]}
                for metric in ("accuracy", "nats"):
                    told[metric] = [round(x, 5) for x in helped(np.concatenate([one[metric] for one in own]), users)]
                rows.append(told)
                print(told, flush=True)
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
