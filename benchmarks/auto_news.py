"""`chamtune auto` on the news sample with MiniLM: what do ten minutes give, from train alone?

    python benchmarks/auto_news.py --data FOLDER [--minutes 10] [--seeds 0 1 2] [--model minilm]

The last line is JSON: for each seed the arm that won, accuracy on dev, whether it was promoted, seconds.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import optuna

from chamtune import Auto


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", required=True)
    parser.add_argument("--model", default="minilm")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--home", type=Path, default=None, help="keeps the home folders")
    given = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    rows = []
    for seed in given.seeds:
        with tempfile.TemporaryDirectory() as folder:
            home = (given.home or Path(folder)) / f"seed{seed}"
            started = time.monotonic()
            auto = Auto(given.data, given.model, given.minutes, home=home, more={"seed": seed})
            found = auto.run(home / "deploy", say=lambda line: print(line, flush=True)).result
            assert found is not None
            confirm = found["confirm"] or {}
            rows.append(
                {
                    "seed": seed,
                    "arm": found["leader"],
                    "promoted": found["promoted"],
                    "accuracy": confirm.get("accuracy"),
                    "baseline": confirm.get("baseline_accuracy"),
                    "seconds": round(time.monotonic() - started, 1),
                    "arms": {arm["arm"]: arm["gain"] for arm in found["arms"]},
                }
            )
            print(rows[-1], flush=True)
    print(json.dumps({"model": given.model, "minutes": given.minutes, "seeds": rows}))


if __name__ == "__main__":
    main()
