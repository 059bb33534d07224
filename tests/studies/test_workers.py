"""Several workers of one study: one total, nobody's living trial failed, nobody's dead trial lost."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import optuna
import pytest
import yaml
from optuna.trial import TrialState

from objectives.classification import Classification
from studies import lease, runner
from studies.lease import Lease
from studies.recovery import POINT, RETRY_OF, SURPLUS
from studies.runner import Loop, StopRequest, Watcher, run_study
from studies.storage import open_storage
from studies.study import find_study, finished, open_study
from studies.trial import MEASURED
from studies.workers import WORKER, Workers, workers_of

pytestmark = pytest.mark.usefixtures("kept_scores", "no_results")
SPACE = {"x": optuna.distributions.FloatDistribution(0, 1)}


@pytest.fixture
def study(tmp_path):
    return optuna.create_study(storage=open_storage(f"sqlite:///{tmp_path / 's.db'}"), study_name="s")


@pytest.fixture
def thread():
    """A function that calls another in a thread of its own, and gives its Future."""
    with ThreadPoolExecutor() as pool:
        yield pool.submit


class Waits(Watcher):
    """Keeps what it is told that the worker waits for."""

    def __init__(self):
        self.reasons = []

    def waiting(self, reason):
        self.reasons.append(reason)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("homes", [("h", "h"), ("h1", "h2")])
def test_two_workers_reach_exactly_the_total(tmp_path, spec_of, monkeypatch, thread, homes):
    both, real = threading.Barrier(2), Loop.run
    monkeypatch.setattr(Loop, "run", lambda self: (both.wait(100), real(self)))
    spec = spec_of(trials=6, storage=f"sqlite:///{tmp_path / 'shared.db'}", sampler="random")
    workers = [thread(lambda home=home: run_study(spec, tmp_path / home)) for home in homes]
    results = [worker.result() for worker in workers]
    trials = find_study("small", tmp_path, spec.storage).get_trials()
    assert [result.trials for result in results] == [6, 6]
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 6
    assert len({trial.user_attrs[WORKER] for trial in trials}) == 2
    assert len({trial.user_attrs[MEASURED]["seed"] for trial in trials}) == 2
    assert len({str(trial.params) for trial in trials}) == 6
    assert not list(tmp_path.glob("shared.db.workers/*.worker"))


STUCK = """
import sys, time
from pathlib import Path
from objectives.classification import Classification
from studies.runner import run_study
from studies.spec import load_spec
real = Classification.evaluate
def stuck(self, params, part="tune", report=None):
    if report is None and params != self.space.BASELINE:
        print("measuring", flush=True)
        time.sleep(600)
    return real(self, params, part, report)
Classification.evaluate = stuck
run_study(load_spec(sys.argv[1], {}), Path(sys.argv[2]))
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_killed_workers_trial_is_taken_over_while_another_lives(tmp_path, spec_of, thread):
    spec = spec_of(trials=4, storage=f"sqlite:///{tmp_path / 'shared.db'}")
    path = tmp_path / "spec.yaml"
    path.write_text(yaml.safe_dump(spec.model_dump(mode="json")))
    doomed = subprocess.Popen([sys.executable, "-c", STUCK, path, tmp_path / "h1"], stdout=subprocess.PIPE)
    try:
        assert doomed.stdout.readline() == b"measuring\n"
        watcher = Waits()
        other = thread(lambda: run_study(spec, tmp_path / "h2", watcher))
        while not watcher.reasons and not other.done():
            time.sleep(0.05)
        before = find_study("small", tmp_path, spec.storage).get_trials()
        assert [t.state for t in before] == [TrialState.RUNNING, *[TrialState.COMPLETE] * 3]
    finally:
        doomed.kill()
        doomed.communicate()
    result = other.result()
    trials = find_study("small", tmp_path, spec.storage).get_trials()
    assert watcher.reasons == ["the last 1 trials are in other workers' hands; waiting for them"]
    assert (result.trials, result.failed, result.lost) == (4, 0, [0])
    assert [t.state for t in trials] == [TrialState.FAIL, *[TrialState.COMPLETE] * 4]
    assert (trials[4].params, trials[4].user_attrs[RETRY_OF]) == (trials[0].params, 0)


DOOMED = """
import sys
from pathlib import Path
from objectives.classification import Classification
from studies import lease
from studies.runner import run_study
from studies.spec import load_spec
lease.LEASE_S = 3.0
real, waited = Classification.evaluate, []
def waits(self, params, part="tune", report=None):
    if report is None and params != self.space.BASELINE and not waited:
        print("measuring", flush=True)
        waited.append(sys.stdin.readline())
        if waited == ["die\\n"]:
            raise SystemExit(70)
    return real(self, params, part, report)
Classification.evaluate = waits
run_study(load_spec(sys.argv[1], {}), Path(sys.argv[2]))
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_on_a_server_one_worker_dies_of_an_error_while_another_is_suspended(tmp_path, spec_of, monkeypatch, postgresql):
    monkeypatch.setattr(lease, "LEASE_S", 3.0)
    spec, path, others = spec_of(trials=6, storage=postgresql("workers")), tmp_path / "spec.yaml", []
    path.write_text(yaml.safe_dump(spec.model_dump(mode="json")))
    try:
        for home in ("broken", "suspended"):
            command = [sys.executable, "-c", DOOMED, path, tmp_path / home]
            others.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE))
            assert others[-1].stdout.readline() == b"measuring\n"
        broken, suspended = others
        broken.communicate(b"die\n")
        suspended.send_signal(signal.SIGSTOP)
        result = run_study(spec, tmp_path / "home")
        suspended.send_signal(signal.SIGCONT)
        suspended.communicate(b"go on\n")
    finally:
        for other in others:
            other.kill()
            other.wait()
    trials = find_study("small", tmp_path, spec.storage).get_trials()
    assert (broken.returncode, suspended.returncode) == (70, 0)
    assert (result.trials, result.failed, result.lost) == (6, 0, [0, 1])
    assert [t.state for t in trials] == [TrialState.FAIL] * 2 + [TrialState.COMPLETE] * 6
    assert sorted(t.user_attrs[RETRY_OF] for t in trials if RETRY_OF in t.user_attrs) == [0, 1]


def test_a_trial_too_many_is_given_back_and_a_queued_one_comes_again(tmp_path, spec_of):
    spec = spec_of(trials=2)
    run_study(spec, tmp_path)
    opened = open_study(spec, tmp_path)
    point = opened.study.trials[0].params | {"beta": 0.123}
    with workers_of(tmp_path, opened.url, spec.name) as workers:
        loop = Loop(opened, workers, StopRequest(), Watcher(), None)
        assert loop.runner.run_one() is None
        opened.study.enqueue_trial(point, user_attrs={POINT: point})
        assert loop.runner.run_one() is None
        loop.run()
    trials = opened.study.trials
    assert [t.user_attrs.get("failure") for t in trials] == [None, None, SURPLUS, SURPLUS, None]
    assert [t.number for t in finished(trials)] == [0, 1]
    assert (trials[4].state, trials[4].user_attrs[POINT]) == (TrialState.WAITING, point)


def test_the_second_worker_waits_while_the_first_opens_the_study_and_can_be_stopped(
    tmp_path, spec_of, monkeypatch, thread
):
    opening, go_on, real = threading.Event(), threading.Event(), runner.open_study

    def slow(*given):
        opening.set()
        go_on.wait(100)
        return real(*given)

    monkeypatch.setattr(runner, "open_study", slow)
    first = thread(lambda: run_study(spec_of(trials=1), tmp_path))
    assert opening.wait(100)
    watcher = Waits()
    second = thread(lambda: run_study(spec_of(trials=1), tmp_path, watcher, stop=lambda: bool(watcher.reasons)))
    with pytest.raises(runner.Stopped):
        second.result()
    assert "opens the study" in watcher.reasons[0]
    go_on.set()
    assert first.result().trials == 1


def test_a_run_outside_of_the_main_thread_stops_at_its_callers_word(tmp_path, spec_of, thread):
    seen = []

    class Counts(Watcher):
        def trial(self, outcome, done, total):
            seen.append(outcome)

    result = thread(lambda: run_study(spec_of(), tmp_path, Counts(), stop=lambda: len(seen) >= 3)).result()
    assert (result.trials, result.stopped_by) == (3, 0)


def die(workers):
    """What the kernel does for a process that is killed."""
    os.close(workers._life)
    workers._life = None


def test_who_holds_no_lock_is_dead_and_buried_when_its_trials_are_taken_care_of(tmp_path, study):
    ours, theirs = Workers(tmp_path / "w", "s"), Workers(tmp_path / "w", "s")
    stranger = Workers(tmp_path / "w", "another study")
    with ours, stranger:
        assert ours.alone()
        with theirs:
            assert not ours.alone()
            trial = study.ask(SPACE)
            trial.set_user_attr(WORKER, theirs.id)
            unstamped = study.ask(SPACE)
            assert [t.number for t in ours.lost(study.trials)] == [unstamped.number]
            study.tell(unstamped, 0.0)
            die(theirs)
            ours.bury(study.trials)
            assert [t.number for t in ours.lost(study.trials)] == [trial.number]
            assert len(list((tmp_path / "w").glob("*.worker"))) == 3
            study.tell(trial, 0.0)
            ours.bury(study.trials)
            assert len(list((tmp_path / "w").glob("*.worker"))) == 2
            assert ours.alone()


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(lease, "LEASE_S", 2.4)


def wait_until(true):
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_lease_runs_out_when_its_counter_stands_still_and_not_before(tmp_path, study, quick):
    url = f"sqlite:///{tmp_path / 's.db'}"
    ours, living, dead, polite = (Lease(url, "s") for _ in range(4))
    for one, name in ((living, "living"), (dead, "dead"), (polite, "polite"), (ours, "ours")):
        one.take(name)
    try:
        dead._over.set()
        polite.give_back()
        assert not ours.expired("dead")
        wait_until(lambda: ours.expired("dead"))
        assert ours.expired("polite")
        assert not ours.expired("living")
        assert not ours.expired("unheard of")
        assert not ours.alone(besides=[])
        assert ours.alone(besides=["living"])
    finally:
        ours.give_back()
        living.give_back()


@pytest.mark.slow
def test_an_unstamped_trial_is_lost_after_a_lease_unless_somebody_asks(tmp_path, study, quick):
    url = f"sqlite:///{tmp_path / 's.db'}"
    with (
        Workers(tmp_path / "h1", "s", Lease(url, "s")) as ours,
        Workers(tmp_path / "h2", "s", Lease(url, "s")) as other,
    ):
        study.ask(SPACE)
        other.take_turn()
        end = time.monotonic() + 2 * lease.LEASE_S
        while time.monotonic() < end:
            assert ours.lost(study.trials) == []
            time.sleep(0.1)
        other.give_turn()
        wait_until(lambda: ours.lost(study.trials))


def test_a_home_knows_its_dead_at_once_and_others_wait_for_the_lease(tmp_path, study):
    url = f"sqlite:///{tmp_path / 's.db'}"
    dead = Workers(tmp_path / "h1", "s", Lease(url, "s"))
    with (
        dead,
        Workers(tmp_path / "h1", "s", Lease(url, "s")) as here,
        Workers(tmp_path / "h2", "s", Lease(url, "s")) as far,
    ):
        study.ask(SPACE).set_user_attr(WORKER, dead.id)
        assert here.lost(study.trials) == []
        die(dead)
        assert [t.number for t in here.lost(study.trials)] == [0]
        assert far.lost(study.trials) == []


def test_a_copied_home_does_not_bury_the_living(tmp_path, study):
    url = f"sqlite:///{tmp_path / 's.db'}"
    with Workers(tmp_path / "h1", "s", Lease(url, "s")) as living:
        shutil.copytree(tmp_path / "h1", tmp_path / "h2")
        study.ask(SPACE).set_user_attr(WORKER, living.id)
        with Workers(tmp_path / "h2", "s", Lease(url, "s")) as copy:
            assert copy.lost(study.trials) == []
            assert not copy.alone()


def test_a_worker_that_was_thought_dead_goes_on_with_another_trial(tmp_path, spec_of, monkeypatch):
    real, taken = Classification.evaluate, []

    def suspended(self, params, part="tune", report=None):
        others = find_study("small", tmp_path, None).get_trials(states=[TrialState.RUNNING]) if not taken else []
        for trial in others:
            taken.append(trial.number)
            find_study("small", tmp_path, None).tell(trial.number, state=TrialState.FAIL)
        return real(self, params, part, report)

    spec = spec_of(trials=3)
    run_study(spec_of(trials=1), tmp_path)
    monkeypatch.setattr(Classification, "evaluate", suspended)
    result = run_study(spec, tmp_path)
    trials = find_study("small", tmp_path, None).trials
    assert (result.trials, result.failed, taken) == (3, 0, [1])
    assert [t.user_attrs.get(RETRY_OF) for t in trials] == [None, None, 1, None]


def test_a_dead_workers_trial_is_measured_anew_and_a_living_ones_is_waited_for(tmp_path, spec_of):
    opened = open_study(spec_of(trials=1), tmp_path)
    watcher, dead = Waits(), workers_of(tmp_path, opened.url, "small")
    with dead, workers_of(tmp_path, opened.url, "small") as living:
        for worker in (dead, living):
            opened.study.ask(opened.space).set_user_attr(WORKER, worker.id)
        die(dead)
        result = run_study(spec_of(trials=4), tmp_path, watcher, stop=lambda: bool(watcher.reasons))
    trials = opened.study.trials
    assert (result.trials, result.lost, result.stopped_by) == (3, [0], 0)
    assert [t.state for t in trials[:2]] == [TrialState.FAIL, TrialState.RUNNING]
    assert (trials[2].params, trials[2].user_attrs[RETRY_OF]) == (trials[0].params, 0)
