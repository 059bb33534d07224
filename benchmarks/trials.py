"""Calibration trials a second, tracking on, against bare Optuna. The last line printed is JSON.

    python benchmarks/trials.py [--trials 100 1000]

Both sides use SQLite in WAL mode on the same disk, the TPE sampler with the same seed, the demo study's space, and two
constraints. Bare Optuna runs `study.optimize` with an objective that returns a number. Ours measures every metric,
stores them with the trial, and spools the trial for MLflow while a second process sends the spool. The clock runs over
the trials; how long MLflow needs afterwards is printed beside it as `lag_s`. Both sides alternate, in one process.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from unittest import mock

import optuna

from personalization.databases import sqlite_url
from studies.runner import Loop, StopRequest, Watcher, catch_up
from studies.samplers import suggested
from studies.spec import load_spec
from studies.storage import open_storage
from studies.study import open_study
from studies.workers import workers_of
from tracking.spool import Sender, Spool, tracking_uri


def bare(folder: Path, trials: int) -> float:
    """Seconds that bare Optuna takes."""
    study = optuna.create_study(
        storage=open_storage(sqlite_url(folder / "bare.db")),
        direction="maximize",
        sampler=optuna.samplers.TPESampler(seed=0),
    )

    space = load_spec("demo").space_of.distributions("causal")

    def objective(trial: optuna.Trial) -> float:
        params = suggested(trial, space)
        trial.set_constraint("entropy", 0.5 - params["beta"])
        trial.set_constraint("top1_share", params["beta"] - 1.5)
        return -((params["gamma"] - 1) ** 2)

    started = time.perf_counter()
    study.optimize(objective, n_trials=trials)
    return time.perf_counter() - started


def tuned(home: Path, cache: Path, trials: int) -> tuple[float, float]:
    """(seconds for the trials, seconds until MLflow has them all) of a demo study."""
    home.mkdir()
    (home / "cache").symlink_to(cache)
    spec = load_spec("demo", {"trials": trials})
    opened = open_study(spec, home)
    spool = Spool(home, spec.name, opened.record["id"])
    catch_up(opened, spool)
    sender = Sender(spool, tracking_uri(home, None))
    started = time.perf_counter()
    with workers_of(home, opened.url, spec.name) as workers:
        Loop(opened, workers, StopRequest(), Watcher(), spool).run()
    elapsed = time.perf_counter() - started
    left = sender.finish(1800)
    if left:
        raise SystemExit(f"{left} records did not reach MLflow")
    return elapsed, time.perf_counter() - started - elapsed


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--trials", type=int, nargs="+", default=[100, 1000])
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    result: dict[str, dict[str, float]] = {
        "rate_over_bare_optuna": {},
        "trials_per_s": {},
        "bare_per_s": {},
        "lag_s": {},
    }
    with tempfile.TemporaryDirectory() as name, mock.patch.dict("os.environ"):
        folder = Path(name)
        cache = folder / "cache"
        cache.mkdir()
        for trials in arguments.trials:
            ours, theirs, lags = 0.0, 0.0, 0.0
            for repeat in range(arguments.repeats if trials <= 200 else 1):
                place = folder / f"{trials}-{repeat}"
                place.mkdir()
                theirs += bare(place, trials)
                seconds, lag = tuned(place / "home", cache, trials)
                ours += seconds
                lags += lag
                print(
                    f"{trials} trials, round {repeat}: bare {theirs:.2f} s, ours {ours:.2f} s (sums), lag {lags:.1f} s"
                )
            rounds = repeat + 1
            result["rate_over_bare_optuna"][str(trials)] = theirs / ours
            result["trials_per_s"][str(trials)] = trials * rounds / ours
            result["bare_per_s"][str(trials)] = trials * rounds / theirs
            result["lag_s"][str(trials)] = lags / rounds
    print(json.dumps(result))


if __name__ == "__main__":
    main()
