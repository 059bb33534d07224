"""Which adapters help on the planted world: of all users, groups or each user, with and without history in the prompt?

    python benchmarks/demo_adapters.py [--home DIR] [--k 4] [--arms TEXT]

The same recipe at each level, the calibration solved on the tune users, judged on the confirm users: LoRA in all
layers, groups that start from the LoRA of all users (constrained), prefixes of groups on it, and LoRA with k history
items in the prompt, when learning and when asked (`--k 0`: not these). Beside them the calibration alone, without and
with these items. Gains over the calibration alone are paired, by user, their
p-values corrected for their number. `--arms` takes those alone whose name holds TEXT. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from studies.spec import load_spec
from studies.study import open_study
from tracking.significance import holm, paired

LEVELS = ("unified", "cluster", "user")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--home", type=Path)
    parser.add_argument("--k", type=int, default=4)
    parser.add_argument("--arms", default="")
    options = parser.parse_args()
    home = options.home or Path(tempfile.mkdtemp())
    opened = open_study(load_spec("demo-adapter", {"tracking": "none"}), home)
    base = replace(opened.rooms.BASELINE, fit="exact", kappa=5.0, prior_mode="user")
    lora = replace(base, adapter="lora", blend=1.0, start=0.0, rank=8)
    items = f"{options.k} items, "
    chosen = {
        "calibration alone": base,
        **{f"lora {level}": replace(lora, level=level) for level in LEVELS},
        "lora cluster constrained": replace(lora, level="cluster", anchor=0.01),
        "prefix cluster": replace(lora, adapter="prefix", level="cluster", lr_ratio=4.0),
    }
    if options.k:
        chosen[f"{items}calibration alone"] = replace(base, k=options.k)
        chosen |= {f"{items}lora {level}": replace(lora, level=level, k=options.k) for level in LEVELS}
    answers, seconds = {}, {}
    for name, params in chosen.items():
        if name != "calibration alone" and options.arms not in name:
            continue
        started = time.perf_counter()
        answers[name] = opened.objective.evaluate(params, "confirm")
        seconds[name] = time.perf_counter() - started
        print(f"{name}: {answers[name].metrics['accuracy']:.4f}, {seconds[name]:.0f} s", flush=True)
    alone = answers.pop("calibration alone")
    tests = {name: paired(alone.correct, found) for name, found in answers.items()}
    corrected = dict(zip(tests, holm([test["p_value"] for test in tests.values()]), strict=True))
    result = {"calibration alone": {"accuracy": alone.metrics["accuracy"], "nll": alone.metrics["nll"]}}
    for name, found in answers.items():
        result[name] = {
            "accuracy": found.metrics["accuracy"], "nll": found.metrics["nll"], "gain": tests[name]["delta"],
            "ci95": tests[name]["ci95"], "p_corrected": corrected[name], "seconds": round(seconds[name], 1),
        }  # fmt: skip
        print(name, result[name], flush=True)
    for start in ("lora ", f"{items}lora "):
        for better, worse in (("cluster", "unified"), ("unified", "user")):
            if {start + better, start + worse} - set(answers):
                continue
            test = paired(answers[start + worse].correct, answers[start + better])
            result[f"{start}{better} over {worse}"] = {name: test[name] for name in ("delta", "ci95", "p_value")}
            print(f"{start}{better} over {worse}", result[f"{start}{better} over {worse}"], flush=True)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
