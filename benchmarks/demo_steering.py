"""Does steering beat calibration alone on users that no trial saw, and is it the user's direction that does it?

    python benchmarks/demo_steering.py [--trials 80] [--calibration-trials 200] [--home DIR] [--data FOLDER]

Runs the presets `demo` and `demo-steering`, selects in each as a promotion does, and compares the two on the confirm
users. Then the steering that was chosen again, with random directions of the same length, and with the directions of
other users, on the tune users, too, where the calibration is solved anew for them. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from objectives.classification import Classification
from personalization.evaluation import Evaluation
from personalization.methods.steering.learned import Directions, Learned, Settings
from personalization.methods.steering.moves import SteeringVectors
from search_spaces import ChainParams
from studies.runner import run_study
from studies.spec import load_spec
from studies.study import OpenStudy, open_study
from studies.verdict.selection import choose, feasible, goals, shortlist
from tracking.significance import paired


def chosen(preset: str, home: Path, changes: dict[str, Any]) -> tuple[OpenStudy, ChainParams, Evaluation]:
    """(study, chosen parameters, their evaluation on the confirm users)."""
    spec = load_spec(preset, {"tracking": "none", **changes})
    run_study(spec, home)
    opened = open_study(spec, home)
    found, terms = shortlist(opened), spec.promotion
    best = choose(found, feasible(found, opened.constraints), goals(opened), terms.margins, terms.alpha)
    if best is None:
        raise SystemExit(f"{preset}: no trial would be promoted; run more")
    return opened, best.params, opened.objective.evaluate(best.params, "confirm")


def controlled(opened: OpenStudy, params: ChainParams, change: Callable[[np.ndarray], np.ndarray]) -> Evaluation:
    """The same steering with other personal directions [H, L, d], the calibration solved for them on tune."""
    real = Directions.vectors

    def changed(self: Directions, settings: Settings, learned: Learned) -> SteeringVectors:
        vectors = real(self, settings, learned)
        return replace(vectors, personal=change(vectors.personal))

    with mock.patch.object(Directions, "vectors", changed):
        objective = Classification(opened.rooms, opened.splits, opened.scorer)
        return objective.evaluate(params.changed(fit="exact"), "confirm")


def at_random(directions: np.ndarray) -> np.ndarray:
    random = np.random.default_rng(0).normal(size=directions.shape)
    lengths = np.linalg.norm(directions, axis=-1, keepdims=True) / np.linalg.norm(random, axis=-1, keepdims=True)
    return (random * lengths).astype(np.float32)


def of_others(directions: np.ndarray) -> np.ndarray:
    return np.roll(directions, len(directions) // 2, axis=0)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--trials", type=int, default=80)
    parser.add_argument("--calibration-trials", type=int, default=200)
    parser.add_argument("--home", default="")
    parser.add_argument("--data", help="a folder of LaMP files, instead of the presets' world")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        home = Path(options.home or name)
        data = {"data": {"path": options.data}} if options.data else {}
        _, _, calibrated = chosen("demo", home, {"trials": options.calibration_trials, **data})
        opened, params, steered = chosen("demo-steering", home, {"trials": options.trials, **data})
        print(f"chosen: {params.flat()}")
        arms = {
            "steering and calibration": steered,
            "random directions": controlled(opened, params, at_random),
            "other users' directions": controlled(opened, params, of_others),
        }
        result: dict[str, Any] = {"calibration_alone": round(calibrated.metrics["accuracy"], 4), "arms": {}}
        for arm, evaluation in arms.items():
            test = paired(calibrated.correct, evaluation)
            result["arms"][arm] = {
                "accuracy": round(evaluation.metrics["accuracy"], 4),
                "over_calibration": round(test["delta"], 4),
                "interval": [round(bound, 4) for bound in test["ci95"]],
                "p": round(test["p_value"], 5),
            }
            print(f"{arm}: {result['arms'][arm]}")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
