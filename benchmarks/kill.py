"""kill -9 in the middle of a study, again and again. The last line printed is JSON.

    python benchmarks/kill.py [--kills 20] [--preset demo]

After each kill every trial that was finished before must be there, unchanged; after a last resume none may be RUNNING.
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

from optuna.trial import FrozenTrial, TrialState

from personalization.errors import ChamtuneError
from studies.study import find_study


def trials_of(home: Path, study: str) -> list[FrozenTrial]:
    try:
        return find_study(study, home, None).get_trials(deepcopy=False)
    except ChamtuneError:
        return []


def complete(home: Path, study: str) -> dict[int, list[float]]:
    return {t.number: t.values for t in trials_of(home, study) if t.state == TrialState.COMPLETE}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--preset", default="demo")
    arguments = parser.parse_args()
    chance, kept, lost_ever = random.Random(0), {}, 0
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        command = [sys.executable, "-m", "cli", "run", arguments.preset, "--home", str(home), "--trials"]
        for number in range(arguments.kills):
            process = subprocess.Popen([*command, "100000"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            while len(complete(home, arguments.preset)) < len(kept) + 2 and process.poll() is None:
                time.sleep(0.1)
            time.sleep(chance.uniform(0, 0.5))
            process.kill()
            process.wait()
            now = complete(home, arguments.preset)
            lost_ever += sum(now.get(trial) != values for trial, values in kept.items())
            kept = now
            print(f"kill {number + 1}: {len(kept)} finished trials", flush=True)
        subprocess.run([*command, str(len(kept) + 5)], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        trials = trials_of(home, arguments.preset)
    result = {
        "kills": arguments.kills,
        "finished": len(kept),
        "lost_or_changed": lost_ever,
        "running_after_resume": sum(t.state == TrialState.RUNNING for t in trials),
        "worker_lost": sum(t.user_attrs.get("failure") == "worker_lost" for t in trials),
        "gaps_in_numbers": len(trials) - 1 - max(t.number for t in trials),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
