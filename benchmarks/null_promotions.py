"""How often is something promoted where there is nothing to find? The last line printed is JSON.

    python benchmarks/null_promotions.py [--seeds 20] [--first 0] [--preset demo-null] [--trials N]

Each seed draws its own users and questions, runs the preset's study and asks for a promotion, in a home of its own.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

from studies.runner import run_study
from studies.spec import load_spec
from studies.study import open_study
from studies.verdict.promotion import promote


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--first", type=int, default=0, help="the first of the seeds")
    parser.add_argument("--preset", default="demo-null")
    parser.add_argument("--trials", type=int, help="default: the preset's")
    arguments = parser.parse_args()
    trials = {} if arguments.trials is None else {"trials": arguments.trials}
    promoted: list[int] = []
    for seed in range(arguments.first, arguments.first + arguments.seeds):
        with tempfile.TemporaryDirectory() as name:
            home = Path(name)
            spec = load_spec(arguments.preset, {"seed": seed, "tracking": "none", **trials})
            run_study(spec, home)
            result = promote(open_study(spec, home), home / "deploy")
        print(f"seed {seed}: {'promoted' if result['promoted'] else 'refused'}: {result['reason']}", flush=True)
        promoted += [seed] if result["promoted"] else []
    print(
        json.dumps({"preset": arguments.preset, "seeds": arguments.seeds, "promoted": len(promoted), "which": promoted})
    )


if __name__ == "__main__":
    main()
