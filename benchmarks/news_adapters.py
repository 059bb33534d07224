"""Adapters on real news, side by side: heads and LoRA of all users, of groups and of each; with and without a prior.

    python benchmarks/news_adapters.py FOLDER [--home DIR] [--arms TEXT]

FOLDER holds LaMP-2 files, train and dev. Heads stand on all-MiniLM-L6-v2, LoRA lies in its upper half; both learn from
the histories of train users. Penalties and groups of heads are those with the smallest loss on the tune users, by heads
that did not learn from them; learning rates of LoRA those with the smallest loss on held-out items. The calibration is
solved on tune. Judged on the dev users: accuracy with its interval over users, gains over the encoder alone and over
the head of all users, p-values corrected for their number. `--arms` takes those alone whose name holds TEXT. The last
line is JSON.
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from objectives.classification import Classification
from search_spaces import ChainParams, chain_space
from studies.spec import load_spec
from studies.study import open_study
from tracking.significance import holm, paired

PENALTIES = (0.0003, 0.001, 0.003, 0.01, 0.03)
OWN = (0.001, 0.01, 0.1)
GROUPS = (2, 4)
RATES = (5e-4, 2e-3)
ARMS = (
    "none", "head unified", "head cluster", "head user", "lora unified", "lora cluster", "lora user",
    "lora user constrained",
)  # fmt: skip
LORA = {
    "adapter.adapter": "lora", "adapter.blend": 1.0, "adapter.start": 0.5, "adapter.cluster_by": "labels",
    "adapter.groups": 4,
}  # fmt: skip
PRIORS: dict[str, dict[str, Any]] = {
    "no prior": {"calibration.prior_mode": "uniform"},
    "plain prior": {"calibration.prior_mode": "user", "calibration.kappa": 5.0},
    "prior of similar items": {
        "calibration.prior_mode": "similar", "calibration.kappa": 5.0, "calibration.ranking": "similarity",
        "calibration.width": 0.1, "calibration.half_life": 30.0,
    },
}  # fmt: skip


def recipes(arm: str) -> list[dict[str, Any]]:
    """What an arm is searched over: settings by full name."""
    if arm == "none":
        return [{}]
    adapter, level, *constrained = arm.split()
    if adapter == "lora":
        anchor = 0.1 if constrained else 0.0
        return [{**LORA, "adapter.level": level, "adapter.lr": rate, "adapter.anchor": anchor} for rate in RATES]
    head = {"head.head": "logistic", "head.blend": 1.0, "head.level": level}
    if level == "unified":
        return [{**head, "head.c": c} for c in PENALTIES]
    own = [{**head, "head.c": c, "head.c_own": c_own} for c, c_own in itertools.product(PENALTIES[1:4], OWN)]
    if level == "user":
        return own
    kinds = itertools.product(GROUPS, ("labels", "embedding"))
    return [{**one, "head.groups": k, "head.cluster_by": kind} for k, kind in kinds for one in own]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--home", type=Path)
    parser.add_argument("--arms", default="")
    options = parser.parse_args()
    home = options.home or Path(tempfile.mkdtemp())
    opened = open_study(load_spec("news-head", {"tracking": "none", "data": {"path": str(options.data)}}), home)
    space = chain_space(("adapter", "head", "calibration"))
    objective = Classification(space, opened.splits, opened.scorer)
    answers = {"encoder alone": objective.evaluate(space.BASELINE, "confirm")}

    def loss(params: ChainParams) -> float:
        """On held-out items where something was trained, else on the tune users."""
        held_out = objective.facts(params).metrics.get("held_out_loss")
        return objective.evaluate(params).metrics["nll"] if held_out is None else held_out

    for arm, (prior, given) in itertools.product(ARMS, PRIORS.items()):
        if arm != "head unified" and options.arms not in arm:
            continue
        settings = ({"calibration.fit": "exact", **given, **recipe} for recipe in recipes(arm))
        best = min((space.of_full(full) for full in settings), key=loss)
        answers[f"{arm}, {prior}"] = objective.evaluate(best, "confirm")
        print(f"{arm}, {prior}: {answers[f'{arm}, {prior}'].metrics['accuracy']:.3f}", best.flat(), flush=True)
    nothing = np.zeros(len(opened.splits.confirm), dtype=np.bool_)
    references = {"encoder alone": "over_encoder", "head unified, no prior": "over_head"}
    result: dict[str, dict[str, Any]] = {}
    for name, found in answers.items():
        result[name] = {"accuracy": found.metrics["accuracy"], "ci95": paired(nothing, found)["ci95"]}
    for reference, title in references.items():
        tests = {
            name: paired(answers[reference].correct, found) for name, found in answers.items() if name != reference
        }
        for (name, test), p in zip(tests.items(), holm([t["p_value"] for t in tests.values()]), strict=True):
            result[name][title] = {"delta": test["delta"], "ci95": test["ci95"], "p_corrected": p}
    for name, row in result.items():
        print(name, row)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
