"""Running a study: open, trials in turn with other workers, results. Resumes where an earlier run ended."""

from __future__ import annotations

import hashlib
import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import Any

import optuna
from optuna.distributions import CategoricalDistribution
from optuna.trial import FrozenTrial, TrialState

from personalization.databases import same_database, shown
from personalization.errors import ChamtuneError, UsageError
from personalization.evaluation import Evaluation
from personalization.files import locked
from studies.footprint import Footprint, footprint
from studies.recovery import POINT, REPEATED, SURPLUS, enqueue, fail, queue_again, uncounted
from studies.results import StudyResult, summarize, write_results
from studies.samplers import derived_seed, holds, make_sampler, points
from studies.spec import StudySpec
from studies.storage import storage_url
from studies.study import OpenStudy, ended_trials, finished, open_study
from studies.trial import GivenBack, Outcome, TrialRunner, outcome_of
from studies.verdict.prospects import Prospect, prospect
from studies.workers import WORKER, Workers, workers_of
from tracking.spool import FLUSH_S, OFF, Sender, Spool, tracking_uri

log = logging.getLogger(__name__)

POLL_S = 0.5
"""How often a worker that waits for others looks again."""


class Watcher:
    """What a caller may want to know while a study runs. The default wants nothing."""

    def scoring(self, done: int, total: int) -> None:
        """Prompts scored so far."""

    def opened(self, found: Prospect, held: Footprint) -> None:
        """The study is open; what its confirm users can show, and what it will hold."""

    def waiting(self, reason: str) -> None:
        """This worker waits for another; said once."""

    def trial(self, outcome: Outcome, done: int, total: int) -> None:
        """A trial has ended."""

    def sending(self, waiting: int) -> None:
        """Records not yet in MLflow."""


class Stopped(ChamtuneError):
    """A run was stopped before it had a result to show."""

    def __init__(self, by: int) -> None:
        super().__init__("stopped; the same command goes on from here")
        self.exit_code = 128 + by


class StopRequest:
    """Made by the first SIGINT or SIGTERM, or by the caller's word; a second signal interrupts the running trial."""

    def __init__(self, asked: Callable[[], bool] | None = None) -> None:
        self.signal: int | None = None
        self._asked = asked

    @property
    def by(self) -> int | None:
        """The signal, 0 for the caller's word, None while there is no request."""
        if self.signal is None and self._asked is not None and self._asked():
            return 0
        return self.signal

    def __call__(self, number: int, _frame: FrameType | None) -> None:
        if self.signal is not None:
            raise KeyboardInterrupt
        self.signal = number


@contextmanager
def stop_on_signal(asked: Callable[[], bool] | None = None) -> Iterator[StopRequest]:
    """Turn SIGINT and SIGTERM into a request to stop after the running trial. Other threads than the main one have no
    signals; there only `asked` tells."""
    request = StopRequest(asked)
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    previous = {number: signal.signal(number, request) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield request
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def run_study(
    spec: StudySpec, home: Path, watcher: Watcher | None = None, stop: Callable[[], bool] | None = None
) -> StudyResult:
    """Create or resume the study of a spec and run it to its budget, beside whatever other workers it has.

    `stop` is asked between trials, and in a thread takes the place of signals. Stopped where there is no result yet.
    """
    watcher = watcher or Watcher()
    started = time.monotonic()
    home.mkdir(parents=True, exist_ok=True)
    url = storage_url(home, spec.storage)
    if same_database(url, tracking_uri(home, spec.tracking)):
        raise UsageError(f"storage and tracking are both {shown(url)}; Optuna and MLflow need a database each")
    with stop_on_signal(stop) as request:
        try:
            opened = _open(spec, home, url, watcher, request)
            return _run(opened, watcher, request, started)
        except KeyboardInterrupt:
            if request.signal is None:
                raise
            raise Stopped(request.signal) from None


def _open(spec: StudySpec, home: Path, url: str, watcher: Watcher, request: StopRequest) -> OpenStudy:
    """Open the study; of several workers in one home the first scores the prompts, and the others wait for it."""
    said = False

    def obey() -> None:
        if request.by is not None:
            raise Stopped(request.by)

    def patience() -> None:
        nonlocal said
        if not said:
            watcher.waiting("another worker of this home opens the study and scores its prompts; waiting for it")
        said = True
        obey()
        time.sleep(POLL_S)

    opening = True

    def scoring(done: int, total: int) -> None:
        watcher.scoring(done, total)
        if opening:
            obey()

    name = hashlib.sha256(f"{url}\n{spec.name}".encode()).hexdigest()[:32]
    with locked(home / "locks" / f"{name}.lock", patience):
        opened = open_study(spec, home, scoring)
    opening = False
    return opened


def _run(opened: OpenStudy, watcher: Watcher, request: StopRequest, started: float) -> StudyResult:
    spec = opened.spec
    watcher.opened(prospect(opened), footprint(opened))
    spool = None if spec.tracking == OFF else Spool(opened.home, spec.name, opened.record["id"])
    sender = None
    if spool is not None:
        catch_up(opened, spool)
        sender = Sender(spool, tracking_uri(opened.home, spec.tracking))
    waiting = 0
    try:
        lost = work_on(opened, watcher, request, spool)
        result = summarize(opened, time.monotonic() - started, lost)
        if request.by is None:
            write_results(opened, result, spool)
    finally:
        if sender is not None:
            waiting = sender.finish(FLUSH_S, watcher.sending)
    return result._replace(waiting=waiting, stopped_by=request.by)


def work_on(
    opened: OpenStudy, watcher: Watcher, request: StopRequest, spool: Spool | None, rival: Evaluation | None = None
) -> list[int]:
    """Run trials to the budget of an open study's spec; the numbers of those that dead workers left.

    `rival`: answers on the tune users that a trial has to be able to beat, else it is ended early.
    """
    with workers_of(opened.home, opened.url, opened.spec.name) as workers:
        loop = Loop(opened, workers, request, watcher, spool, rival)
        loop.run()
    return loop.lost


def tend(opened: OpenStudy) -> None:
    """Fail the trials that dead workers left in a study, and queue their parameters again; none is run."""
    with workers_of(opened.home, opened.url, opened.spec.name) as workers:
        loop = Loop(opened, workers, StopRequest(), Watcher(), None)
        with workers.turn():
            loop.tend()


def catch_up(opened: OpenStudy, spool: Spool) -> None:
    """Spool the study itself and every finished trial that has no line yet."""
    if not spool.knows_study():
        spec = opened.record["spec"]
        spool.append(
            {
                "kind": "study",
                "study": opened.spec.name,
                "started_ms": time.time_ns() // 1_000_000,
                "params": {"objective": opened.spec.method, "sampler": spec["sampler"], "seed": spec["seed"]},
                "optimize": dict(opened.spec.optimize),
                "constraints": list(opened.spec.constraints),
                "varied": list(opened.space),
                "tags": {
                    "optuna.study": opened.spec.name,
                    "model": opened.spec.model.path,
                    "model_fingerprint": opened.record["model"],
                    **{f"data_{part}": digest for part, digest in opened.record["data"].items()},
                },
            }
        )
    known = spool.trials()
    for trial in ended_trials(opened.study):
        if trial.number not in known:
            _spool_trial(spool, outcome_of(trial))


def _spool_trial(spool: Spool, outcome: Outcome) -> None:
    spool.append({"kind": "trial", **asdict(outcome)})


class Loop:
    """One worker's trials. `spec.trials` is the total of all workers: exactly so many trials count in the end."""

    def __init__(
        self,
        opened: OpenStudy,
        workers: Workers,
        request: StopRequest,
        watcher: Watcher,
        spool: Spool | None,
        rival: Evaluation | None = None,
    ) -> None:
        spec = opened.spec
        self._opened, self._study, self._total = opened, opened.study, spec.trials
        self._workers, self._request, self._watcher, self._spool = workers, request, watcher, spool
        self._points = points(spec.sampler, spec.seed, opened.space)
        self._deadline = None if spec.timeout_s is None else time.monotonic() + spec.timeout_s
        self._done = 0
        self.lost: list[int] = []
        self.runner = TrialRunner(opened, self._seed(), self._begin, rival)

    def _seed(self) -> int:
        """Another one than that of the other workers, who would propose the same points."""
        opened, spec = self._opened, self._opened.spec
        with self._workers.turn():
            if self._workers.alone():
                return opened.sampler_seed
        so_far = len(self._study.get_trials(deepcopy=False))
        seed = derived_seed(spec.seed, spec.sampler, self._workers.id, so_far)
        self._study.sampler = make_sampler(spec.sampler, seed)
        return seed

    def run(self) -> None:
        """Run trials until the total is reached, the time is up, a finite search has no point left, or a stop."""
        with self._workers.turn():
            self.tend()
            if self._opened.spec.warm_start:
                queue_warm_start(self._opened)
        while self._ready_to_ask():
            outcome = self.runner.run_one()
            self._workers.give_turn()
            if outcome is not None:
                self._done += 1
                if self._spool is not None:
                    _spool_trial(self._spool, outcome)
                self._watcher.trial(outcome, self._done, self._total)

    def _ready_to_ask(self) -> bool:
        """Whether there is a trial to ask for, in this worker's turn; waits for what other workers have in hand."""
        said = False
        while self._request.by is None and (self._deadline is None or time.monotonic() < self._deadline):
            self._workers.take_turn()
            trials = self.tend()
            self._done = len(finished(trials))
            running = sum(trial.state == TrialState.RUNNING for trial in trials)
            if self._done + running < self._total and self._something_to_ask(trials):
                return True
            self._workers.give_turn()
            if self._done >= self._total or not running:
                return False
            if not said:
                self._watcher.waiting(f"the last {running} trials are in other workers' hands; waiting for them")
            said = True
            time.sleep(POLL_S)
        return False

    def tend(self) -> list[FrozenTrial]:
        """Take care of what dead workers left; all trials as they are then. For use in a turn."""
        trials = self._study.get_trials(deepcopy=False)
        if lost := self._workers.lost(trials):
            self.lost += fail(self._study, lost)
            trials = self._study.get_trials(deepcopy=False)
        if queue_again(self._study, trials, self._opened.space):
            trials = self._study.get_trials(deepcopy=False)
        self._workers.bury(trials)
        self.runner.remember(trials)
        return trials

    def _something_to_ask(self, trials: list[FrozenTrial]) -> bool:
        """Whether the sampler, the queue or the list of a finite search has another point; queues the list's next."""
        if self._points is None or any(trial.state == TrialState.WAITING for trial in trials):
            return True
        left_out = uncounted(trials)
        known = [{**t.user_attrs.get(POINT, {}), **t.params} for t in trials if t.number not in left_out]
        seen = {tuple(sorted(point.items())) for point in known}
        missing = (point for point in self._points if tuple(sorted(point.items())) not in seen)
        following = next(missing, None)
        if following is not None:
            enqueue(self._study, following)
        return following is not None

    def _begin(self, trial: optuna.Trial) -> None:
        """Stamp a trial as this worker's, and give it back where others fill the total already.

        Workers on a server take no turns with those of other homes. Numbers decide there: a trial is kept if fewer than
        the total have a lower one and count, run or wait. So never more than the total are kept.
        """
        trial.set_user_attr(WORKER, self._workers.id)
        self._workers.give_turn()
        trials = self._study.get_trials(deepcopy=False)
        left_out = uncounted(trials)
        before = [t for t in trials if t.number < trial.number and t.number not in left_out]
        point = trial.user_attrs.get(POINT)
        if point is not None and any(t.user_attrs.get(POINT) == point for t in before):
            raise GivenBack(REPEATED)
        if len(before) >= self._total:
            raise GivenBack(SURPLUS)


def queue_warm_start(opened: OpenStudy) -> None:
    """Queue the exact solvers' optima that the study does not know yet, as far as the space holds them.

    A point whose choices the space leaves out is no optimum there, if anything reads them.
    """
    space = opened.space
    for raw in opened.objective.warm_start():
        known = {name: value for name, value in raw.items() if name in space}
        inside = {name: value for name, value in known.items() if holds(name, space[name], value)}
        needed = known.keys() - inside.keys() - opened.rooms.idle(raw)
        left_out = [name for name in needed if isinstance(space[name], CategoricalDistribution)]
        if inside and not any(isinstance(known[name], str) for name in left_out):
            attributes: dict[str, Any] = {POINT: inside, "warm_start": True}
            opened.study.enqueue_trial(inside, user_attrs=attributes, skip_if_exists=True)
