"""kill -9 in the middle of a training, again and again: is the adapter that of a training that nobody killed?

    python benchmarks/kill_training.py [--kills 10] [--users 60] [--epochs 8]

LoRA of 4 groups on the histories of users of the planted world, two evaluations an epoch. After each kill the same
command goes on. The adapters and the records of the end are compared bit by bit with those of one run without a kill.
The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors import safe_open

from personalization.backbones.cached import CachedScorer
from personalization.data.demo.world import make_world
from personalization.methods.adapters.trained import Trained
from personalization.methods.adapters.user_adapters import Plan, UserAdapters

PLAN = Plan(level="cluster", groups=4, start=0.67, epochs=8, lr=5e-4, dropout=0.1, word_dropout=0.1, margin=0.2)


def learn(folder: Path, users: int, epochs: int) -> None:
    """One training, from wherever the last one was killed."""
    dataset, plan = make_world(0, users, questions_per_user=1).dataset, replace(PLAN, epochs=epochs)
    UserAdapters(CachedScorer("demo", folder / "scores"), folder / "adapters").learn(dataset, plan)


def done(folder: Path) -> float:
    """Epochs that the checkpoint holds."""
    for path in (folder / "adapters").glob("*/checkpoint.safetensors"):
        with safe_open(path, framework="numpy") as file:
            return float(json.loads(file.metadata()["training"])["epoch"])
    return 0.0


def result(folder: Path) -> tuple[str, dict[str, Any]]:
    """(content of the adapters, the records without how long they took)."""
    (trained,) = (folder / "adapters").glob("*")
    record = json.loads((trained / "record.json").read_text())
    return Trained(trained, PLAN.level, 0, PLAN.groups, {}).content, {**record, "seconds": None}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--users", type=int, default=60)
    parser.add_argument("--epochs", type=int, default=PLAN.epochs)
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        learn(options.child, options.users, options.epochs)
        return
    chance, at = random.Random(0), []
    with tempfile.TemporaryDirectory() as name:
        whole, killed = Path(name) / "whole", Path(name) / "killed"
        command = [
            sys.executable, __file__, "--users", str(options.users), "--epochs", str(options.epochs), "--child",
        ]  # fmt: skip
        started = time.perf_counter()
        subprocess.run([*command, str(whole)], check=True)
        seconds = time.perf_counter() - started
        while len(at) < options.kills:
            process, before = subprocess.Popen([*command, str(killed)]), done(killed)
            while done(killed) == before and process.poll() is None:
                time.sleep(0.05)
            time.sleep(chance.uniform(0, seconds / 40))
            if process.poll() is not None:
                break
            process.kill()
            process.wait()
            at.append(done(killed))
            print(f"kill {len(at)} with {at[-1]:g} epochs done", flush=True)
        subprocess.run([*command, str(killed)], check=True)
        same = result(whole) == result(killed)
    print(json.dumps({"kills": len(at), "epochs_at_kills": at, "equal_bits": same, "seconds_without": round(seconds)}))


if __name__ == "__main__":
    main()
