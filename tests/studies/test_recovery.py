"""Points that are queued, and trials that end before they are told."""

import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time

import optuna
import pytest
import yaml
from optuna.trial import TrialState

from objectives.classification import Classification
from personalization.errors import UsageError
from studies.recovery import enqueue, fail, queue_again
from studies.runner import run_study, tend
from studies.samplers import points, suggested
from studies.storage import open_storage, storage_url
from studies.study import find_study, finished, open_study

pytestmark = pytest.mark.usefixtures("kept_scores", "no_results")


def trials_of(home, name="small"):
    return find_study(name, home, None).get_trials(deepcopy=False)


def recover(study, space):
    failed = fail(study, study.get_trials(states=[TrialState.RUNNING]))
    queue_again(study, study.get_trials(), space)
    return failed


def test_lost_trials_fail_and_are_retried_once_and_clean(tmp_path):
    study = optuna.create_study(storage=open_storage(storage_url(tmp_path, None)), study_name="s")
    space = {"x": optuna.distributions.FloatDistribution(0, 1)}
    dead = study.ask(space)
    dead.set_constraint("entropy", 5.0)
    assert recover(study, space) == [0]
    assert recover(study, space) == []
    retry = study.ask(space)
    assert (retry.params, retry.user_attrs["retry_of"]) == (dead.params, 0)
    retry.set_constraint("entropy", -1.0)
    study.tell(retry, 0.0)
    assert study.trials[1].constraints == {"entropy": -1.0}
    assert study.trials[0].state == TrialState.FAIL
    assert [trial.number for trial in finished(study.trials)] == [1]


@pytest.mark.parametrize("asked", [0, 1, 2])
def test_a_queued_point_lost_while_it_was_asked_for_is_queued_again(tmp_path, asked):
    study = optuna.create_study(storage=open_storage(storage_url(tmp_path, None)), study_name="s")
    space = {name: optuna.distributions.FloatDistribution(0, 1) for name in "xyz"}
    enqueue(study, {"x": 0.25, "y": 0.75})
    dying = study.ask()
    for name in "xyz"[:asked]:
        dying.suggest_float(name, 0, 1)
    assert recover(study, space) == [0]
    retry = study.ask(space)
    assert (retry.params["x"], retry.params["y"], retry.user_attrs["retry_of"]) == (0.25, 0.75, 0)


def test_a_sampled_point_lost_while_it_was_asked_for_is_left_to_the_sampler(tmp_path):
    study = optuna.create_study(storage=open_storage(storage_url(tmp_path, None)), study_name="s")
    space = {name: optuna.distributions.FloatDistribution(0, 1) for name in "xyz"}
    study.ask().suggest_float("x", 0, 1)
    assert recover(study, space) == [0]
    assert [t.state for t in study.trials] == [TrialState.FAIL]


@pytest.mark.parametrize("asked", [0, 1, 6])
def test_a_grid_point_lost_while_it_was_asked_for_is_measured_after_all(tmp_path, spec_of, asked):
    space = {"kappa": 5.0, "tau": 1.0, "source": "batch", "prior_mode": "user", "beta": [0.5, 1], "gamma": [0.5, 1]}
    spec = spec_of(trials=1, sampler="grid", space=space)
    run_study(spec, tmp_path)
    opened = open_study(spec, tmp_path)
    enqueue(opened.study, points("grid", spec.seed, opened.space)[1])
    suggested(opened.study.ask(), dict(list(opened.space.items())[:asked]))
    result = run_study(spec.model_copy(update={"trials": 10}), tmp_path)
    complete = [t for t in trials_of(tmp_path) if t.state == TrialState.COMPLETE]
    assert result.lost == [1]
    assert len({json.dumps(t.params, sort_keys=True) for t in complete}) == 4
    assert not [t for t in trials_of(tmp_path) if t.state == TrialState.RUNNING]


def test_what_a_dead_worker_left_is_tended_without_a_trial(tmp_path, spec_of):
    spec = spec_of(trials=2)
    run_study(spec, tmp_path)
    opened = open_study(spec, tmp_path)
    suggested(opened.study.ask(), opened.space)
    tend(opened)
    *_, lost, queued = trials_of(tmp_path)
    assert (lost.number, lost.state, queued.state) == (2, TrialState.FAIL, TrialState.WAITING)
    assert queued.system_attrs["fixed_params"] == lost.params


def test_warm_start_comes_first(tmp_path, spec_of, monkeypatch):
    points = [{"beta": 1.0, "gamma": 0.5, "kappa": 5.0, "tau": 1.0, "prior_mode": "user", "source": "batch"}]
    monkeypatch.setattr(Classification, "warm_start", lambda self: points)
    run_study(spec_of(trials=4, warm_start=True), tmp_path)
    first = trials_of(tmp_path)[0]
    assert first.user_attrs["warm_start"] is True
    assert first.params["kappa"] == 5.0


@pytest.mark.slow
def test_warm_start_points_survive_the_death_of_who_queues_them(tmp_path, spec_of, monkeypatch):
    base = {"beta": 1.0, "kappa": 5.0, "tau": 1.0, "prior_mode": "user", "source": "batch"}
    monkeypatch.setattr(Classification, "warm_start", lambda self: [{**base, "gamma": g} for g in (0.25, 0.5, 0.75)])
    real, calls = optuna.Study.enqueue_trial, itertools.count()

    def dies(self, *given, **named):
        if next(calls) == 1:
            raise KeyboardInterrupt
        real(self, *given, **named)

    monkeypatch.setattr(optuna.Study, "enqueue_trial", dies)
    spec = spec_of(trials=5, warm_start=True)
    with pytest.raises(KeyboardInterrupt):
        run_study(spec, tmp_path)
    run_study(spec.model_copy(update={"trials": 4}), tmp_path)
    run_study(spec, tmp_path)
    assert [t.params["gamma"] for t in trials_of(tmp_path) if "warm_start" in t.user_attrs] == [0.25, 0.5, 0.75]


@pytest.fixture
def start(tmp_path):
    """A function that starts `chamtune run` in a process of its own; whatever still runs at the end is killed."""
    processes = []

    def run(spec, trials):
        path = tmp_path / "spec.yaml"
        path.write_text(yaml.safe_dump({**spec.model_dump(mode="json"), "trials": trials}))
        process = subprocess.Popen(
            [sys.executable, "-m", "cli", "run", str(path), "--home", str(tmp_path / "home"), "--json"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        processes.append(process)
        return process

    yield run
    for process in processes:
        process.kill()
        process.communicate()


def wait_for_trials(home, at_least, process):
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        if (home / "studies.db").exists():
            try:
                if len(trials_of(home)) >= at_least:
                    return
            except UsageError:
                pass
        time.sleep(0.05)
    raise AssertionError(process.communicate()[1].decode()[-2000:])


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_kill_9_loses_no_finished_trial_and_leaves_none_running(tmp_path, spec_of, start):
    home, spec = tmp_path / "home", spec_of()
    chance = random.Random(0)
    seen: dict[int, float] = {}
    for round_ in range(3):
        process = start(spec, 100_000)
        wait_for_trials(home, len(seen) + 3, process)
        time.sleep(chance.uniform(0, 0.3))
        process.kill()
        process.wait()
        finished = {t.number: t.value for t in trials_of(home) if t.state == TrialState.COMPLETE}
        assert {n: finished[n] for n in seen} == seen, round_
        seen = finished
    total = len([t for t in trials_of(home) if t.state == TrialState.COMPLETE]) + 2
    run_study(spec.model_copy(update={"trials": total}), home)
    trials = trials_of(home)
    assert [t.number for t in trials] == list(range(len(trials)))
    assert not [t for t in trials if t.state == TrialState.RUNNING]
    assert {n: trials[n].value for n in seen} == seen
    lost = [t for t in trials if t.state == TrialState.FAIL]
    retried = {t.user_attrs.get("retry_of") for t in trials}
    parameters = set(trials[0].params)
    assert all(t.number in retried for t in lost if set(t.params) == parameters)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_study_after_the_running_trial(tmp_path, spec_of, start, number):
    home = tmp_path / "home"
    process = start(spec_of(), 100_000)
    wait_for_trials(home, 3, process)
    os.kill(process.pid, number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number, err.decode()
    answer = json.loads(out.decode().splitlines()[-1])
    states = {t.state for t in trials_of(home)}
    assert states == {TrialState.COMPLETE}
    assert answer["stopped_by"] == number
    assert answer["trials"] == len(trials_of(home))
