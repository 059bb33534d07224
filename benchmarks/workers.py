"""Two workers of one study on two cores, against one alone: trials a minute. The last line printed is JSON.

    python benchmarks/workers.py [--trials 24] [--cores 2] [--users 100]

Steering trials on a planted world of so many users; all run the whole model. `ratio` is two workers over one, as
shipped: at least 1.5 is wanted. The same two workers then take all cores each (`unshared`), and spin while they wait,
as OpenMP does by itself (`spinning`); `spinning_ratio` compares with one worker that spins, which is what the library
does alone. The clock runs while all workers have a trial, until so many trials are done; of each trial the part counts
that lies in that time.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

from personalization.data.demo.world import make_world
from personalization.data.lamp import write_dataset
from personalization.errors import UsageError
from personalization.threads import CHOSEN, WAITING
from studies.study import find_study

SPACE = {
    "direction": "mean_difference", "general": "mean_difference", "edit": "additive", "site": "block", "scope": "all",
    "place": "start", "start": 0.0, "count": 1, "gate": "none", "groups": 1, "shrink": 1.0, "alpha_general": 0.0,
    "alpha_personal": {"low": 0.1, "high": 2.0},
}  # fmt: skip
NAME = "workers"
SPEC = {
    "name": NAME, "model": {"path": "demo"}, "objective": "steering", "space": SPACE, "sampler": "random",
    "trials": 1_000_000, "tracking": "none",
}  # fmt: skip
RUN = "from personalization import threads\n{}\nimport cli\ncli.main()"
CHANGES = {
    "shipped": "",
    "unshared": "threads.share_cores = lambda: None",
    "spinning": "threads.share_cores = threads.wait_briefly = lambda: None",
}


Span = tuple[float, float]


def start(spec: Path, home: Path, change: str) -> subprocess.Popen[bytes]:
    environment = {name: value for name, value in os.environ.items() if name not in (*CHOSEN, *WAITING)}
    command = [sys.executable, "-c", RUN.format(CHANGES[change]), "run", str(spec), "--home", str(home)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def spans(home: Path, name: str) -> list[Span]:
    """When each trial began and ended; infinity where it runs."""
    try:
        trials = find_study(name, home, None).get_trials(deepcopy=False)
    except UsageError:
        return []
    ends = [math.inf if t.datetime_complete is None else t.datetime_complete.timestamp() for t in trials]
    return [(t.datetime_start.timestamp(), end) for t, end in zip(trials, ends, strict=True) if t.datetime_start]


def together(all_spans: list[Span], workers: int) -> Span | None:
    """From the first moment in which so many trials ran to the last end of a trial."""
    starts = [at for at, _ in all_spans if sum(a <= at < b for a, b in all_spans) >= workers]
    ends = [end for _, end in all_spans if end < math.inf]
    return (min(starts), max(ends)) if starts and ends and max(ends) > min(starts) else None


def done_in(window: Span, all_spans: list[Span]) -> float:
    """How many trials were done in a time; of each the part that lies in it."""
    first, last = window
    return sum(max(0.0, min(b, last) - max(a, first)) / (b - a) for a, b in all_spans if b < math.inf)


def rate(spec: Path, home: Path, workers: int, change: str, trials: int) -> float:
    """Trials a minute of so many workers."""
    processes = [start(spec, home, change) for _ in range(workers)]
    try:
        while True:
            time.sleep(1)
            for process in processes:
                if process.poll() is not None:
                    raise SystemExit(process.communicate()[1].decode()[-2000:])
            found = spans(home, NAME)
            window = together(found, workers)
            if window is not None and done_in(window, found) >= trials:
                return 60 * done_in(window, found) / (window[1] - window[0])
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--trials", type=int, default=24)
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--users", type=int, default=100)
    options = parser.parse_args()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.cores])
    rates: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_dataset(folder / "data", "demo", make_world(0, options.users).dataset)
        spec = folder / "spec.yaml"
        spec.write_text(yaml.safe_dump({**SPEC, "data": {"path": str(folder / "data")}}))
        rate(spec, folder / "warm", 1, "shipped", 1)
        for workers, change in ((1, "shipped"), (2, "shipped"), (2, "unshared"), (1, "spinning"), (2, "spinning")):
            home = folder / f"{workers}-{change}"
            home.mkdir()
            (home / "cache").symlink_to(folder / "warm" / "cache")
            arm = f"{workers} {change}"
            rates[arm] = rate(spec, home, workers, change, options.trials)
            print(f"{arm}: {rates[arm]:.1f} trials a minute", flush=True)
    result = {
        "cores": options.cores,
        "trials_per_minute": {arm: round(rate, 2) for arm, rate in rates.items()},
        "ratio": round(rates["2 shipped"] / rates["1 shipped"], 3),
        "unshared_ratio": round(rates["2 unshared"] / rates["1 shipped"], 3),
        "spinning_ratio": round(rates["2 spinning"] / rates["1 spinning"], 3),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
