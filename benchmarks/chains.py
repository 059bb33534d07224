"""What does each stage add on the planted world, and do several together beat the best alone? The last line is JSON.

    python benchmarks/chains.py [--seeds 0] [--only TEXT ...] [--against NAME] [--home DIR] [--tune 0.3]

Each seed draws its own users and questions. Every chain is fitted on the tune users at fixed settings, its calibration
solved there, and judged on the confirm users. Gains over one chain (`--against`) are paired by question and tested by
user over all seeds together, their p-values corrected for their number. Trained adapters are kept in `--home`.
`--tune`: share of the users that chains are fitted on; a tenth is left out, the rest confirms. What `shared items` are
set to was chosen on the tune users of seed 0, behind the LoRA of groups.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

from objectives.classification import Classification
from personalization.evaluation import Evaluation, joined
from search_spaces import chain_space
from studies.spec import load_spec
from studies.study import open_study
from tracking.significance import holm, paired

SOLVED = {"calibration.fit": "exact", "calibration.kappa": 5.0, "calibration.prior_mode": "user"}
ITEMS = {"prompt.k": 8, "prompt.ranking": "recency"}
LORA = {"adapter.adapter": "lora", "adapter.blend": 1.0, "adapter.start": 0.0, "adapter.rank": 8}
GROUPS = {**LORA, "adapter.level": "cluster", "adapter.groups": 4, "adapter.anchor": 0.01}
EACH = {**LORA, "adapter.level": "user"}
PREFIX = {**LORA, "adapter.adapter": "prefix", "adapter.level": "cluster", "adapter.groups": 4, "adapter.lr_ratio": 4.0}
MOVED = {"steering.alpha_personal": 1.0, "steering.start": 0.34, "steering.groups": 4, "steering.shrink": 8.0}
HEAD = {"head.head": "logistic", "head.blend": 0.5, "head.level": "cluster", "head.groups": 4, "head.depth": 0.9}
SHARED = {
    "calibration.prior_mode": "similar",
    "calibration.ranking": "bm25",
    "calibration.width": 0.7,
    "calibration.half_life": 1000.0,
    "calibration.kappa": 1.0,
    "calibration.reach": 3.5,
    "calibration.near": 0.3,
    "calibration.kin": 3.8,
    "calibration.floor": 0.4,
}
CHAINS: dict[str, dict[str, Any]] = {
    "calibration": {},
    "shared items": SHARED,
    "prompt": ITEMS,
    "steering": MOVED,
    "head": HEAD,
    "lora of all": LORA,
    "lora of groups": GROUPS,
    "lora of groups, not held": {**GROUPS, "adapter.anchor": 0.0},
    "lora of each": EACH,
    "prefix of groups": PREFIX,
    "prompt + steering": {**ITEMS, **MOVED},
    "prompt + shared items": {**ITEMS, **SHARED},
    "head + shared items": {**HEAD, **SHARED},
    "lora of all + shared items": {**LORA, **SHARED},
    "lora of groups + shared items": {**GROUPS, **SHARED},
    "prefix of groups + shared items": {**PREFIX, **SHARED},
    "lora of groups + head + shared items": {**GROUPS, **HEAD, **SHARED},
    "prompt + head": {**ITEMS, **HEAD},
    "steering + head": {**MOVED, **HEAD},
    "prompt + lora of all": {**ITEMS, **LORA},
    "prompt + lora of groups": {**ITEMS, **GROUPS},
    "prompt + lora of groups, not held": {**ITEMS, **GROUPS, "adapter.anchor": 0.0},
    "prompt + lora of each": {**ITEMS, **EACH},
    "prompt + prefix of groups": {**ITEMS, **PREFIX},
    "lora of all + steering": {**LORA, **MOVED},
    "lora of groups + steering": {**GROUPS, **MOVED},
    "prefix of groups + steering": {**PREFIX, **MOVED},
    "lora of groups + head": {**GROUPS, **HEAD},
    "prefix of groups + head": {**PREFIX, **HEAD},
    "prompt + lora of groups + steering": {**ITEMS, **GROUPS, **MOVED},
    "prompt + lora of groups + head": {**ITEMS, **GROUPS, **HEAD},
}
"""name -> settings by full name."""


def answers(seed: int, names: list[str], home: Path, tune: float) -> dict[str, Evaluation]:
    """Each chain's answers on the confirm users of a seed's world."""
    data = {"path": "demo", "shares": {"tune": tune, "select": 0.1, "confirm": round(0.9 - tune, 6)}}
    told = {"tracking": "none", "seed": seed, "data": data, "name": f"chains-{seed}-{tune:g}"}
    opened = open_study(load_spec("demo", told), home)
    found = {}
    for name in names:
        full = {**SOLVED, **CHAINS[name]}
        order = ("prompt", "adapter", "steering", "head", "calibration")
        space = chain_space([stage for stage in order if any(key.startswith(f"{stage}.") for key in full)])
        started = time.perf_counter()
        objective = Classification(space, opened.splits, opened.scorer)
        found[name] = objective.evaluate(space.of_full(full), "confirm")
        spent = time.perf_counter() - started
        print(f"seed {seed}, {name}: {found[name].metrics['accuracy']:.4f}, {spent:.0f} s", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--only", nargs="+", default=list(CHAINS))
    parser.add_argument("--against", default="calibration")
    parser.add_argument("--home", type=Path)
    parser.add_argument("--tune", type=float, default=0.3)
    options = parser.parse_args()
    home = options.home or Path(tempfile.mkdtemp())
    names = list(dict.fromkeys([options.against, *options.only]))
    per_seed = [answers(seed, names, home, options.tune) for seed in options.seeds]
    pooled = {name: joined([named(found[name], seed) for seed, found in enumerate(per_seed)]) for name in names}
    base = pooled.pop(options.against)
    tests = {name: paired(base.correct, found) for name, found in pooled.items()}
    corrected = dict(zip(tests, holm([test["p_value"] for test in tests.values()]), strict=True))
    rows: dict[str, Any] = {options.against: {"accuracy": base.metrics["accuracy"], "nll": base.metrics["nll"]}}
    for name, found in pooled.items():
        test = tests[name]
        measured = {"accuracy": found.metrics["accuracy"], "nll": found.metrics["nll"]}
        rows[name] = {**measured, "gain": test["delta"], "ci95": test["ci95"], "p_corrected": corrected[name]}
    print(json.dumps({"seeds": options.seeds, "questions": len(base.gold), "against": options.against, "rows": rows}))


def named(found: Evaluation, seed: int) -> Evaluation:
    """With users that are those of their world alone."""
    users = tuple(f"{seed}/{user}" for user in found.user_ids)
    questions = tuple(f"{seed}/{question}" for question in found.question_ids)
    return Evaluation(found.labels, questions, users, found.gold, found.log_probs, found.prior_modes)


if __name__ == "__main__":
    main()
