"""Running a study: recover, baseline, trials, results. Resumes where an earlier run ended, however it ended."""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution

from personalization.databases import same_database, shown
from personalization.errors import UsageError
from studies.results import StudyResult, summarize, write_results
from studies.spec import StudySpec
from studies.storage import WorkerLock, home_stamp, recover_lost_trials, storage_url
from studies.study import OpenStudy, finished, open_study
from studies.trial import Outcome, TrialRunner, outcome_of
from tracking.spool import OFF, Sender, Spool, tracking_uri

log = logging.getLogger(__name__)

FLUSH_S = 60
"""How long the end of a run waits for MLflow; what is left is sent by the next run or `chamtune sync`."""


class Watcher:
    """What a caller may want to know while a study runs. The default wants nothing."""

    def scoring(self, done: int, total: int) -> None:
        """Prompts scored so far."""

    def trial(self, outcome: Outcome, done: int, total: int) -> None:
        """A trial has ended."""

    def sending(self, waiting: int) -> None:
        """Records not yet in MLflow."""


class StopRequest:
    """Set by the first SIGINT or SIGTERM; the second interrupts the running trial."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def __call__(self, number: int, _frame: FrameType | None) -> None:
        if self.signal is not None:
            raise KeyboardInterrupt
        self.signal = number


@contextmanager
def stop_on_signal() -> Iterator[StopRequest]:
    """Turn SIGINT and SIGTERM into a request to stop after the running trial."""
    request = StopRequest()
    previous = {number: signal.signal(number, request) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield request
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def run_study(spec: StudySpec, home: Path, watcher: Watcher | None = None) -> StudyResult:
    """Create or resume the study of a spec and run it to its budget."""
    watcher = watcher or Watcher()
    started = time.monotonic()
    home.mkdir(parents=True, exist_ok=True)
    url = storage_url(home, spec.storage)
    if same_database(url, tracking_uri(home, spec.tracking)):
        raise UsageError(f"storage and tracking are both {shown(url)}; Optuna and MLflow need a database each")
    with stop_on_signal() as stop, WorkerLock(home, url, spec.name) as lock:
        opened = open_study(spec, home, watcher.scoring, worker="0" if lock.alone else str(os.getpid()))
        stamp = home_stamp(home, url)
        lost = recover_lost_trials(opened.study, opened.space, stamp) if lock.alone else []
        lock.share()
        spool = None if spec.tracking == OFF else Spool(home, spec.name, opened.record["id"])
        sender = None
        if spool is not None:
            _catch_up(opened, spool)
            sender = Sender(spool, tracking_uri(home, spec.tracking))
        waiting = 0
        try:
            _run_trials(opened, stop, watcher, spool)
            result = summarize(opened, time.monotonic() - started, lost)
            if stop.signal is None:
                write_results(opened, result, spool)
        finally:
            if sender is not None:
                waiting = sender.finish(FLUSH_S, watcher.sending)
    return result._replace(waiting=waiting, stopped_by=stop.signal)


def _catch_up(opened: OpenStudy, spool: Spool) -> None:
    """Spool the study itself and every finished trial that has no line yet."""
    if not spool.knows_study():
        spec = opened.record["spec"]
        spool.append(
            {
                "kind": "study",
                "study": opened.spec.name,
                "started_ms": time.time_ns() // 1_000_000,
                "params": {"objective": spec["objective"], "sampler": spec["sampler"], "seed": spec["seed"]},
                "optimize": dict(opened.spec.optimize),
                "constraints": list(opened.spec.constraints),
                "varied": [name for name in asdict(opened.rooms.BASELINE) if name in opened.space],
                "tags": {
                    "optuna.study": opened.spec.name,
                    "model": opened.spec.model.path,
                    "model_fingerprint": opened.record["model"],
                    **{f"data_{part}": digest for part, digest in opened.record["data"].items()},
                },
            }
        )
    known = spool.trials()
    for trial in finished(opened.study.get_trials(deepcopy=False)):
        if trial.number not in known:
            _spool_trial(spool, outcome_of(trial))


def _spool_trial(spool: Spool, outcome: Outcome) -> None:
    spool.append({"kind": "trial", **asdict(outcome), "feasible": outcome.feasible})


def _run_trials(opened: OpenStudy, stop: StopRequest, watcher: Watcher, spool: Spool | None) -> None:
    spec, study = opened.spec, opened.study
    trials = study.get_trials(deepcopy=False)
    runner = TrialRunner(
        study,
        opened.space,
        opened.rooms,
        opened.objective,
        opened.baseline,
        list(spec.optimize),
        opened.constraints,
        seed=opened.sampler_seed,
        pruner=spec.pruner,
        stamp=home_stamp(opened.home, opened.url),
    )
    runner.remember(trials)
    if spec.warm_start and not trials:
        _enqueue_warm_start(opened)
    deadline = None if spec.timeout_s is None else time.monotonic() + spec.timeout_s
    done = len(finished(trials))
    with _stoppable(study) as exhausted:
        while done < spec.trials and stop.signal is None and not exhausted():
            if deadline is not None and time.monotonic() >= deadline:
                break
            outcome = runner.run_one()
            done += 1
            if spool is not None:
                _spool_trial(spool, outcome)
            watcher.trial(outcome, done, spec.trials)


def _enqueue_warm_start(opened: OpenStudy) -> None:
    """Queue the exact solvers' optima, as far as the space holds them; not one whose choices the space leaves out."""
    space = opened.space
    for raw in opened.objective.warm_start():
        known = {name: value for name, value in raw.items() if name in space}
        inside = {name: value for name, value in known.items() if _holds(space[name], value)}
        left_out = [name for name in known.keys() - inside.keys() if isinstance(space[name], CategoricalDistribution)]
        if inside and not any(isinstance(known[name], str) for name in left_out):
            opened.study.enqueue_trial(inside, user_attrs={"warm_start": True})


def _holds(distribution: BaseDistribution, value: Any) -> bool:
    if isinstance(distribution, CategoricalDistribution):
        return value in distribution.choices
    return distribution._contains(value)


@contextmanager
def _stoppable(study: optuna.Study) -> Iterator[Callable[[], bool]]:
    """Let samplers that run out of points (grid, brute) stop the study outside of `Study.optimize`.

    They call `Study.stop` in `after_trial`, which Optuna 5 allows only under this thread-local flag.
    """
    study._thread_local.in_optimize_loop = True
    study._stop_flag = False
    sampler: Any = study.sampler

    def exhausted() -> bool:
        return study._stop_flag or (hasattr(sampler, "is_exhausted") and bool(sampler.is_exhausted(study)))

    try:
        yield exhausted
    finally:
        study._thread_local.in_optimize_loop = False
