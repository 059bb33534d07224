"""`chamtune auto`, killed at random moments, goes on with the same command, and its minutes count running time alone.

    python benchmarks/kill_auto.py [--kills 10] [--minutes 2] [--data demo] [--model demo]

The last line is JSON: the kills, seconds that processes ran, seconds that the race says it spent, trials of each arm.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import optuna


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--minutes", type=float, default=2.0)
    parser.add_argument("--data", default="demo")
    parser.add_argument("--model", default="demo")
    parser.add_argument("--longest", type=float, default=25.0, help="seconds that a run lives at most")
    given = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    draws, ran, kills, code = random.Random(0), 0.0, 0, None
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        command = [sys.executable, "-m", "cli", "auto", "--data", given.data, "--model", given.model, "--home", folder]
        command += [
            "--minutes",
            str(given.minutes),
            "--name",
            "race",
            "--tracking",
            "none",
            "--out",
            f"{folder}/deploy",
        ]
        journal = home / "auto" / "race.json"
        while kills < given.kills:
            started = time.monotonic()
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            try:
                code = process.wait(draws.uniform(2, given.longest))
                ran += time.monotonic() - started
                break
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                kills += 1
                ran += time.monotonic() - started
                print(f"killed {kills} after {time.monotonic() - started:.1f} s", flush=True)
        else:
            started = time.monotonic()
            code = subprocess.run(command, check=False, capture_output=True).returncode
            ran += time.monotonic() - started
        content = json.loads(journal.read_text())
        running, arms = 0, {}
        storage = f"sqlite:///{home}/studies.db"
        for name in optuna.get_all_study_names(storage):
            if name.startswith("race."):
                trials = optuna.load_study(study_name=name, storage=storage).get_trials(deepcopy=False)
                running += sum(trial.state == optuna.trial.TrialState.RUNNING for trial in trials)
                arms[name] = sum(trial.state.is_finished() for trial in trials)
        print(
            json.dumps(
                {
                    "kills": kills,
                    "exit_code": code,
                    "processes_ran_s": round(ran, 1),
                    "race_spent_s": content["spent_s"],
                    "minutes": given.minutes,
                    "left_running": running,
                    "finished_trials": arms,
                }
            )
        )


if __name__ == "__main__":
    main()
