"""What insights promise, simulated, and what they cost with many trials: `python benchmarks/insights.py`.

Last line: JSON. `--runs N` (2,000), `--trials N` (10,000), `--seeds N` (10), `--first` (1) and `--home DIR`
(studies that are there are not run again) of warm starts, `--only coverage,planted,importance,speed,warm`.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from studies.insights.history import history
from studies.insights.importance import importance
from studies.insights.values import good, posterior, value_scores

optuna.logging.set_verbosity(optuna.logging.WARNING)


def covers(counts: np.ndarray, goods: np.ndarray, rate: float) -> tuple[int, int]:
    """How many intervals hold 1, of how many values that were tried."""
    _, low, high = posterior(counts, goods, rate)
    tried = counts > 0
    return int(((low <= 1) & (high >= 1))[tried].sum()), int(tried.sum())


def coverage(runs: int) -> dict[str, float]:
    """Share of an unrelated parameter's intervals that hold 1, by trials and number of values, values drawn evenly."""
    found = {}
    for trials, values in ((25, 3), (60, 4), (200, 2), (200, 6), (1000, 6)):
        rng, hits, total = np.random.default_rng(trials + values), 0, 0
        for _ in range(runs):
            chosen, _ = good(rng.normal(size=trials))
            member = rng.integers(values, size=trials)[:, None] == np.arange(values)
            held, tried = covers(member.sum(axis=0), (member & chosen[:, None]).sum(axis=0), float(chosen.mean()))
            hits, total = hits + held, total + tried
        found[f"{trials} trials, {values} values"] = hits / total
    return found


def tpe_coverage(runs: int) -> float:
    """The same where TPE chose the values: a parameter that matters, and one that does not."""
    hits = total = 0
    for seed in range(runs):
        study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=seed), direction="maximize")
        noise = np.random.default_rng(seed)

        def value(trial: optuna.Trial, noise: np.random.Generator = noise) -> float:
            trial.suggest_categorical("none", ["a", "b", "c", "d"])
            return -((trial.suggest_float("x", 0, 1) - 0.4) ** 2) + 0.1 * float(noise.normal())

        study.optimize(value, n_trials=60)
        found = value_scores(history("tpe", study.get_trials(deepcopy=False), ("v", "maximize")))
        own = found[found["parameter"] == "none"]
        hits, total = hits + int(((own["low"] <= 1) & (own["high"] >= 1)).sum()), total + len(own)
    return hits / total


SPACE = {
    "strong": FloatDistribution(0, 1),
    "weak": CategoricalDistribution(["a", "b", "c"]),
    "none": IntDistribution(0, 4),
}


def planted(count: int, seed: int, maximize: bool) -> Any:
    rng, trials = np.random.default_rng(seed), []
    for number in range(count):
        params = {"strong": float(rng.random()), "weak": str(rng.choice(["a", "b", "c"])), "none": int(rng.integers(5))}
        value = 2 * params["strong"] + 0.8 * (params["weak"] == "b") + 0.3 * rng.normal()
        trials.append(optuna.create_trial(params=params, distributions=SPACE, value=value if maximize else -value))
        trials[-1].number = number
    return history("planted", trials, ("value", "maximize" if maximize else "minimize"))


def first(runs: int, effect: float) -> float:
    """How often one of four values that is better by so many standard deviations is ranked first after 60 trials."""
    rng, space, hits = np.random.default_rng(0), {"x": CategoricalDistribution([0, 1, 2, 3])}, 0
    for _ in range(runs):
        choices = rng.integers(4, size=60)
        values = rng.normal(size=60) + effect * (choices == 2)
        trials = [
            optuna.create_trial(params={"x": int(c)}, distributions=space, value=float(v))
            for c, v in zip(choices, values, strict=True)
        ]
        hits += value_scores(history("x", trials, ("v", "maximize"))).iloc[0]["value"] == "2"
    return hits / runs


def orders(runs: int) -> dict[str, float]:
    """How often importance finds the planted order of three parameters, and holds what is unrelated at 0."""
    found: dict[str, float] = {}
    for maximize in (True, False):
        right, apart, none = 0, 0, 0
        for seed in range(runs):
            table = importance(planted(100, seed, maximize))
            own = table.set_index("parameter")
            right += list(table["parameter"]) == ["strong", "weak", "none"]
            apart += own.loc["strong", "low"] > own.loc["none", "high"]
            none += own.loc["none", "low"] == 0
        way = "maximize" if maximize else "minimize"
        found |= {
            f"{way}: order": right / runs,
            f"{way}: strong above none": apart / runs,
            f"{way}: none holds 0": none / runs,
        }
    return found


def many(home: Path, count: int) -> str:
    """A study of so many trials with six parameters and two constraints; its name."""
    from studies.storage import open_storage, storage_url

    rng = np.random.default_rng(0)
    space: dict[str, Any] = {f"x{i}": FloatDistribution(0, 1) for i in range(4)}
    space |= {"kind": CategoricalDistribution(["a", "b", "c"]), "count": IntDistribution(1, 8)}
    study = optuna.create_study(storage=open_storage(storage_url(home, None)), study_name="many", direction="maximize")
    trials = []
    for _ in range(count):
        params: dict[str, Any] = {f"x{i}": float(rng.random()) for i in range(4)}
        params |= {"kind": str(rng.choice(["a", "b", "c"])), "count": int(rng.integers(1, 9))}
        value = params["x0"] + 0.3 * params["x1"] * (params["kind"] == "b") + 0.2 * float(rng.normal())
        bounds = {"size": params["x2"] - 0.7, "cost": params["count"] - 6.5}
        trials.append(optuna.create_trial(params=params, distributions=space, value=value, constraints=bounds))
    study.add_trials(trials)
    return "many"


def seconds(call: Any) -> float:
    began = time.perf_counter()
    call()
    return round(time.perf_counter() - began, 3)


def spent(command: list[str]) -> tuple[float, float]:
    """Seconds on the clock, and of the processor, of a command."""
    began, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return round(time.perf_counter() - began, 2), round(cpu, 2)


def speed(home: Path, count: int) -> dict[str, Any]:
    """Seconds and MiB: the terminal from its start; page and API in a server, for the first time and then."""
    from fastapi.testclient import TestClient

    from studies.shown.pages.app import application
    from studies.shown.pages.house import House
    from studies.storage import storage_url

    made = seconds(lambda: many(home, count))
    command = [sys.executable, "-m", "cli", "insights", "many", "--home", str(home)]
    terminal = [spent(command) for _ in range(3)]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    house = House(home, storage_url(home, None))
    client = TestClient(application(house), base_url="http://127.0.0.1")

    def asked(path: str) -> dict[str, float]:
        cpu = time.process_time()
        clock = seconds(lambda: client.get(path).raise_for_status())
        return {"clock": clock, "processor": round(time.process_time() - cpu, 3)}

    return {
        "trials written": made,
        "terminal": min(clock for clock, _ in terminal),
        "terminal, of the processor": min(cpu for _, cpu in terminal),
        "read when it starts": seconds(house.read_all),
        "start page, first": asked("/"),
        "page, first": asked("/insights?study=many"),
        "page": asked("/insights?study=many"),
        "api": asked("/api/insights?study=many"),
        "start page": asked("/"),
        "MiB of the server": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "MiB before": round(before),
    }


def reached(study: optuna.Study, target: float) -> int | None:
    """At which trial, from 1, a study first had a feasible one with this accuracy or a better one."""
    from studies.constraints import feasible

    trials = study.get_trials(deepcopy=False)
    found = (n for n, trial in enumerate(trials, 1) if feasible(trial) and trial.values[0] >= target - 1e-12)
    return next(found, None)


def alone(opened: Any, target: float) -> int | None:
    """At which of ten random settings, solved again on these users, accuracy is what it should be."""
    from studies.carried import solved_again
    from studies.samplers import suggested

    drawn = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=opened.spec.seed))
    for number in range(1, 11):
        point = solved_again(opened, dict(suggested(drawn.ask(), opened.space)))
        if opened.objective.evaluate(opened.rooms.decode(point)).metrics["accuracy"] >= target - 1e-12:
            return number
    return None


def warm(home: Path, seeds: list[int]) -> dict[str, Any]:
    """The demo on users of each seed: when a study that was warm-started from that of other users (the seed before,
    the last for the first) has what the cold one of 200 trials has at its best. Warm studies end when they have it,
    looked at after 20, 50 and 100 trials. `alone`: the same of ten random settings whose strengths are solved again on
    these users, without another study."""
    from studies.carried import carry_over
    from studies.runner import run_study
    from studies.spec import load_spec
    from studies.storage import open_storage, storage_url
    from studies.study import find_study, open_study

    home.mkdir(parents=True, exist_ok=True)
    there = optuna.get_all_study_names(open_storage(storage_url(home, None)))
    for seed in seeds:
        if f"cold-{seed}" not in there or len(find_study(f"cold-{seed}", home, None).trials) < 200:
            run_study(load_spec("demo", {"name": f"cold-{seed}", "seed": seed, "tracking": "none"}), home)
    rows = []
    for seed in seeds:
        other = f"cold-{seeds[seeds.index(seed) - 1]}"
        cold = find_study(f"cold-{seed}", home, None)
        target, row = float(cold.best_trial.values[0]), dict[str, Any](seed=seed, origin=other)
        for trials in (20, 50, 100):
            spec = load_spec("demo", {"name": f"warm-{seed}", "seed": seed, "tracking": "none", "trials": trials})
            if trials == 20:
                carry_over(spec, home, [other])
            run_study(spec, home)
            own = find_study(f"warm-{seed}", home, None)
            if (at := reached(own, target)) is not None:
                break
        row |= {"target": target, "best": float(own.best_trial.values[0]), "cold": reached(cold, target), "warm": at}
        rows.append({**row, "alone": alone(open_study(spec, home), target)})
        print(rows[-1], flush=True)
    at = [np.inf if row["warm"] is None else row["warm"] for row in rows]
    middle = float(np.median(at))
    return {
        "median trial": middle if np.isfinite(middle) else None,
        "within 100": sum(row["warm"] is not None for row in rows),
        "median of cold ones": float(np.median([row["cold"] for row in rows])),
        "alone, within 10": sum(row["alone"] is not None for row in rows),
        "within half of the cold one's own": sum(
            row["warm"] is not None and 2 * row["warm"] <= row["cold"] for row in rows
        ),
        "rows": rows,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=2000)
    parser.add_argument("--trials", type=int, default=10_000)
    parser.add_argument("--only", default="coverage,planted,importance,speed")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--first", type=int, default=1)
    parser.add_argument("--home", type=Path)
    given = parser.parse_args()
    wanted, found = given.only.split(","), dict[str, Any]()
    if "coverage" in wanted:
        found["covers 1"] = coverage(given.runs)
        found["covers 1, values by TPE"] = tpe_coverage(max(1, given.runs // 20))
    if "planted" in wanted:
        found["planted value first"] = {
            str(size): first(max(1, given.runs // 4), size) for size in (0.8, 1.0, 1.2, 1.5)
        }
    if "importance" in wanted:
        found["importance"] = orders(max(1, given.runs // 10))
    with tempfile.TemporaryDirectory() as name:
        if "speed" in wanted:
            found["seconds"] = speed(Path(name), given.trials)
        if "warm" in wanted:
            seeds = list(range(given.first, given.first + given.seeds))
            found["warm start"] = warm(given.home or Path(name) / "warm", seeds)
    for name, value in found.items():
        print(name, json.dumps(value, indent=1))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
