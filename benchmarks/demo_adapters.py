"""Which adapters help on the planted world: one for all users, one for each group, one for each user?

    python benchmarks/demo_adapters.py [--home DIR]

The same recipe at each level, the calibration solved on the tune users, judged on the confirm users; beside it the
calibration alone. Gains over it are paired, by user, their p-values corrected for their number. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import replace
from pathlib import Path

from studies.spec import load_spec
from studies.study import open_study
from tracking.significance import holm, paired


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--home", type=Path)
    home = parser.parse_args().home or Path(tempfile.mkdtemp())
    opened = open_study(load_spec("demo-adapter", {"tracking": "none"}), home)
    base = replace(opened.rooms.BASELINE, fit="exact", kappa=5.0, prior_mode="user")
    lora = replace(base, adapter="lora", blend=1.0, start=0.67)
    chosen = {
        "calibration alone": base,
        **{level: replace(lora, level=level) for level in ("unified", "cluster", "user")},
    }
    answers = {name: opened.objective.evaluate(params, "confirm") for name, params in chosen.items()}
    alone = answers["calibration alone"]
    tests = {name: paired(alone.correct, found) for name, found in answers.items() if name != "calibration alone"}
    corrected = dict(zip(tests, holm([test["p_value"] for test in tests.values()]), strict=True))
    result = {}
    for name, found in answers.items():
        result[name] = {"accuracy": found.metrics["accuracy"], "nll": found.metrics["nll"]}
        if name in tests:
            result[name] |= {"gain": tests[name]["delta"], "ci95": tests[name]["ci95"], "p_corrected": corrected[name]}
        print(name, result[name], flush=True)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
