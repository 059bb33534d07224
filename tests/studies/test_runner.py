import errno
import itertools
import json
import math
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time

import numpy as np
import optuna
import pytest
import yaml
from objectives.calibration import Calibration
from optuna.trial import TrialState

from personalization.errors import UnavailableError, UsageError
from personalization.methods.taste.calibration import line_optimum
from personalization.methods.taste.priors import taste
from studies import results
from studies.pruning import PRUNERS
from studies.recovery import enqueue, fail, queue_again
from studies.runner import run_study
from studies.samplers import SAMPLERS, derived_seed, make_sampler, points, suggested
from studies.shown.display import print_result
from studies.shown.show import describe_study, list_studies
from studies.spec import load_spec
from studies.storage import open_storage, reason, storage_url
from studies.study import RECORD, find_study, finished, open_study, ranked
from studies.trial import MEASURED, Outage, TrialRunner, outcome_of
from tests.tiny import of_table


def trials_of(home, name="small"):
    return find_study(name, home, None).get_trials(deepcopy=False)


def test_a_study_runs_and_every_trial_says_what_it_measured(tmp_path, spec_of):
    result = run_study(spec_of(), tmp_path)
    trials = trials_of(tmp_path)
    assert (result.trials, result.complete, len(trials)) == (12, 12, 12)
    for trial in trials:
        assert list(trial.constraints) == ["entropy", "top1_share"]
        metrics = trial.user_attrs[MEASURED]["metrics"]
        assert trial.value == metrics["accuracy"]
        assert trial.constraints["entropy"] == pytest.approx((0.6 - metrics["entropy"]) / 0.6)
        assert trial.user_attrs[MEASURED]["seed"] == derived_seed(0, "tpe", "0", 0)
    assert result.feasible == sum(all(v <= 0 for v in t.constraints.values()) for t in trials)
    if result.best:
        assert result.best["trial"] == find_study("small", tmp_path, None).best_trial.number
    assert (tmp_path / "results" / "small" / "baseline" / "summary.csv").exists()


@pytest.mark.slow
def test_the_same_seed_gives_the_same_trials(tmp_path, spec_of):
    run_study(spec_of(), tmp_path / "a")
    run_study(spec_of(), tmp_path / "b")
    first, second = ([(t.params, t.value) for t in trials_of(tmp_path / name)] for name in "ab")
    assert first == second
    run_study(spec_of(seed=1), tmp_path / "c")
    assert [t.params for t in trials_of(tmp_path / "c")] != [p for p, _ in first]


@pytest.mark.slow
def test_resuming_continues_to_the_total_and_proposes_new_points(tmp_path, spec_of):
    run_study(spec_of(trials=5), tmp_path)
    run_study(spec_of(trials=10), tmp_path)
    params = [json.dumps(t.params) for t in trials_of(tmp_path)]
    assert len(params) == len(set(params)) == 10
    assert run_study(spec_of(trials=10), tmp_path).trials == 10


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"sampler": "random"}, "spec.sampler: tpe -> random"),
        ({"constraints": {"entropy": ">= 0.5"}}, "spec.constraints.entropy: >= 0.6 -> >= 0.5"),
        ({"space": {"tau": 1.0}}, "spec.space.tau: (absent) -> 1.0"),
    ],
)
def test_resuming_with_another_spec_is_refused_with_the_difference(tmp_path, spec_of, changes, said):
    run_study(spec_of(trials=2), tmp_path)
    with pytest.raises(UsageError) as caught:
        run_study(spec_of(trials=3, **changes), tmp_path)
    assert said in str(caught.value)
    assert len(trials_of(tmp_path)) == 2


def test_a_study_from_before_an_option_existed_resumes(tmp_path, spec_of):
    run_study(spec_of(trials=2), tmp_path)
    study = find_study("small", tmp_path, None)
    record = study.user_attrs[RECORD]
    del record["spec"]["model"]["blocks"]
    study.set_user_attr(RECORD, record)
    assert run_study(spec_of(trials=3), tmp_path).trials == 3


def test_resuming_with_other_data_or_another_model_is_refused(tmp_path, spec_of, small_data, tiny_model):
    import shutil

    data, model = tmp_path / "data", tmp_path / "model"
    shutil.copytree(small_data, data)
    shutil.copytree(tiny_model, model)
    spec = spec_of(trials=2, data={"path": str(data)}, model={"path": str(model)})
    run_study(spec, tmp_path / "home")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 1e-3}))
    with pytest.raises(UsageError, match="model: "):
        run_study(spec, tmp_path / "home")
    (model / "config.json").write_text(json.dumps(config, indent=2))
    outputs = data / "small_outputs.json"
    shutil.copy(tiny_model / "config.json", model / "config.json")
    golds = json.loads(outputs.read_text())
    golds["golds"][0]["output"] = "violence" if golds["golds"][0]["output"] != "violence" else "comedy"
    outputs.write_text(json.dumps(golds))
    with pytest.raises(UsageError, match="data\\."):
        run_study(spec, tmp_path / "home")


@pytest.mark.slow
def test_repeated_parameters_are_not_measured_again(tmp_path, spec_of, monkeypatch):
    measured = []
    real = Calibration.evaluate

    def counting(self, params, part="tune", report=None):
        measured.append(params)
        return real(self, params, part, report)

    monkeypatch.setattr(Calibration, "evaluate", counting)
    monkeypatch.setattr(results, "taste_profile", lambda *_: {})
    space = {"kappa": 5.0, "tau": 1.0, "source": "batch", "prior_mode": "user", "beta": [0, 1], "gamma": [0, 1, 2]}
    result = run_study(spec_of(trials=30, space=space, sampler="random"), tmp_path)
    distinct = {str(p) for p in measured}
    assert len(distinct) <= 6
    assert len(measured) <= len(distinct) + 3
    assert result.duplicates == 30 - len(
        {json.dumps(t.params) for t in trials_of(tmp_path) if "duplicate_of" not in t.user_attrs[MEASURED]}
    )
    for trial in trials_of(tmp_path):
        original = trial.user_attrs[MEASURED].get("duplicate_of")
        if original is not None:
            assert trials_of(tmp_path)[original].value == trial.value


def test_a_failing_trial_is_recorded_and_the_study_goes_on(tmp_path, spec_of, monkeypatch):
    real = Calibration.evaluate
    calls = iter(range(1000))

    def sometimes(self, params, part="tune", report=None):
        number = next(calls)
        if number == 2:
            raise RuntimeError("planted failure")
        evaluation = real(self, params, part, report)
        if number == 4:
            evaluation.metrics["accuracy"] = float("nan")
        return evaluation

    monkeypatch.setattr(Calibration, "evaluate", sometimes)
    result = run_study(spec_of(trials=6), tmp_path)
    failed = [t for t in trials_of(tmp_path) if t.state == TrialState.FAIL]
    assert (result.failed, result.complete) == (2, 4)
    assert "RuntimeError: planted failure" in failed[0].user_attrs["failure"]
    assert "non_finite_objective: accuracy is nan" in failed[1].user_attrs["failure"]


@pytest.fixture
def broken(monkeypatch):
    """A function that lets trials fail with what `error` gives, where it gives something. No figures are drawn."""
    real = TrialRunner._evaluated
    monkeypatch.setattr("studies.runner.write_results", lambda *_: None)

    def fail_with(error):
        def evaluated(self, trial, params):
            if (raised := error()) is not None:
                raise raised
            return real(self, trial, params)

        monkeypatch.setattr(TrialRunner, "_evaluated", evaluated)

    return fail_with


@pytest.mark.parametrize(
    ("cause", "code"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), 74),
        (RuntimeError("CUDA error\nmore"), 70),
        (UnavailableError("no answer"), 69),
        (optuna.exceptions.StorageInternalError("commit"), 69),
    ],
)
def test_an_outage_exits_with_the_code_of_its_cause_and_one_line(cause, code):
    outage = Outage(cause)
    assert (outage.exit_code, "\n" in str(outage)) == (code, False)


def test_an_outage_stops_the_run_and_costs_no_budget(tmp_path, spec_of, broken):
    count = itertools.count()
    broken(lambda: RuntimeError(f"CUDA error {next(count)}"))
    for tries in (1, 2):
        with pytest.raises(Outage, match="5 trials in a row failed with RuntimeError"):
            run_study(spec_of(trials=20), tmp_path)
        assert len(trials_of(tmp_path)) == 5 * tries
        assert finished(trials_of(tmp_path)) == []
    broken(lambda: None)
    result = run_study(spec_of(trials=4), tmp_path)
    assert (result.trials, result.complete, result.failed) == (4, 4, 0)


def test_a_storage_that_fails_in_the_middle_of_a_trial_is_named_as_such(tmp_path, spec_of, broken):
    def cut_off():
        with sqlite3.connect(tmp_path / "studies.db") as database:
            database.execute("ALTER TABLE trials RENAME TO gone")
        database.close()

    broken(cut_off)
    with pytest.raises(optuna.exceptions.StorageInternalError) as caught:
        run_study(spec_of(), tmp_path)
    assert "no such table: trials" in reason(caught.value)


def test_the_points_of_an_outage_are_measured_when_it_is_over(tmp_path, spec_of, broken):
    broken(lambda: OSError(errno.ENOSPC, "No space left on device"))
    with pytest.raises(Outage):
        run_study(spec_of(), tmp_path)
    broken(lambda: None)
    run_study(spec_of(trials=6), tmp_path)
    trials = trials_of(tmp_path)
    assert [t.user_attrs.get("retry_of") for t in trials[5:]] == [0, 1, 2, 3, 4, None]
    assert [t.params for t in trials[5:10]] == [t.params for t in trials[:5]]


def test_failures_of_many_kinds_or_of_the_parameters_are_no_outage(tmp_path, spec_of, broken, monkeypatch):
    kinds = itertools.cycle([ValueError("a"), ValueError("b"), KeyError("a"), None])
    broken(lambda: next(kinds))
    assert run_study(spec_of(trials=9), tmp_path / "kinds").failed == 7
    broken(lambda: None)
    real = Calibration.evaluate

    def infinite(self, params, part="tune", report=None):
        evaluation = real(self, params, part, report)
        evaluation.metrics["accuracy"] = math.inf
        return evaluation

    monkeypatch.setattr(Calibration, "evaluate", infinite)
    assert run_study(spec_of(trials=7), tmp_path / "infinite").failed == 7


def test_an_interrupted_trial_is_measured_when_the_study_goes_on(tmp_path, spec_of, broken):
    errors = iter([None, None, KeyboardInterrupt()])
    broken(lambda: next(errors))
    with pytest.raises(KeyboardInterrupt):
        run_study(spec_of(), tmp_path)
    broken(lambda: None)
    result = run_study(spec_of(trials=4), tmp_path)
    trials = trials_of(tmp_path)
    assert (result.trials, result.complete, result.failed) == (4, 4, 0)
    assert trials[3].params == trials[2].params
    assert describe_study("small", tmp_path, None)["failures"] == {}


def test_a_figure_without_a_finite_value_harms_no_trial_that_is_not_judged_by_it(tmp_path, spec_of, monkeypatch):
    real = Calibration.evaluate

    def odd(self, params, part="tune", report=None):
        evaluation = real(self, params, part, report)
        evaluation.metrics["nll"], evaluation.metrics["brier"] = math.inf, math.nan
        return evaluation

    monkeypatch.setattr(Calibration, "evaluate", odd)
    monkeypatch.setattr(Calibration, "curves", lambda self, params: {"loss": [1.0, math.nan]})
    for trials in (2, 4):
        result = run_study(spec_of(trials=trials, constraints={}), tmp_path)
        assert (result.complete, result.failed) == (trials, 0)
    trial = trials_of(tmp_path)[0]
    assert trial.user_attrs[MEASURED]["metrics"]["nll"] is trial.user_attrs[MEASURED]["metrics"]["brier"] is None
    assert trial.user_attrs[MEASURED]["curves"] == {"loss": [1.0, None]}
    assert not {"nll", "brier"} & set(outcome_of(trial).metrics)
    print_result(result, spec_of(constraints={}))


def test_a_study_without_a_feasible_trial_names_the_closest(tmp_path, spec_of):
    result = run_study(spec_of(trials=4, constraints={"entropy": ">= 99"}), tmp_path)
    assert result.best is None
    assert result.closest["constraints"]["entropy"] > 0


@pytest.mark.parametrize("sampler", of_table(SAMPLERS, "tpe", "grid"))
def test_every_sampler_runs_and_resumes(tmp_path, spec_of, sampler):
    finite = {"kappa": 5.0, "tau": 1.0, "source": "batch", "prior_mode": "user", "beta": [0.5, 1], "gamma": [0.5, 1, 2]}
    space = finite if sampler in ("grid", "brute") else {}
    spec = spec_of(trials=5, sampler=sampler, space=space)
    run_study(spec, tmp_path)
    total = 40 if sampler in ("grid", "brute") else 12
    result = run_study(spec.model_copy(update={"trials": total}), tmp_path)
    assert result.failed == 0
    if sampler in ("grid", "brute"):
        assert len({json.dumps(t.params, sort_keys=True) for t in trials_of(tmp_path)}) == 6
    assert result.trials == (6 if sampler in ("grid", "brute") else 12)


@pytest.mark.parametrize("pruner", of_table(PRUNERS, "none", "median"))
def test_every_pruner_runs_and_leaves_no_pruned_trial_feasible(tmp_path, spec_of, pruner):
    result = run_study(spec_of(trials=25, pruner=pruner, constraints={}), tmp_path)
    assert result.failed == 0
    for trial in trials_of(tmp_path):
        assert bool(trial.intermediate_values) == (pruner not in ("none", "dominated"))
    if pruner == "median":
        assert result.pruned > 0


@pytest.mark.slow
def test_several_metrics_give_a_front(tmp_path, spec_of):
    spec = spec_of(trials=15, optimize={"accuracy": "maximize", "nll": "minimize"})
    run_study(spec, tmp_path)
    study = find_study("small", tmp_path, None)
    front = {t.number for t in study.best_trials}
    first = list(ranked(study.trials, dict(spec.optimize)))[: len(front)]
    assert {t.number for t in first} == front
    assert (tmp_path / "results" / "small" / "best" / "pareto.png").exists()


def test_warm_start_comes_first(tmp_path, spec_of, monkeypatch):
    points = [{"beta": 1.0, "gamma": 0.5, "kappa": 5.0, "tau": 1.0, "prior_mode": "user", "source": "batch"}]
    monkeypatch.setattr(Calibration, "warm_start", lambda self: points)
    run_study(spec_of(trials=4, warm_start=True), tmp_path)
    first = trials_of(tmp_path)[0]
    assert first.user_attrs["warm_start"] is True
    assert first.params["kappa"] == 5.0


@pytest.mark.slow
def test_warm_start_points_survive_the_death_of_who_queues_them(tmp_path, spec_of, monkeypatch):
    base = {"beta": 1.0, "kappa": 5.0, "tau": 1.0, "prior_mode": "user", "source": "batch"}
    monkeypatch.setattr(Calibration, "warm_start", lambda self: [{**base, "gamma": g} for g in (0.25, 0.5, 0.75)])
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


def test_another_order_of_goals_is_refused(tmp_path, spec_of):
    run_study(spec_of(trials=2, optimize={"accuracy": "maximize", "nll": "minimize"}), tmp_path)
    with pytest.raises(UsageError, match="order: "):
        run_study(spec_of(trials=3, optimize={"nll": "minimize", "accuracy": "maximize"}), tmp_path)


@pytest.mark.parametrize("spelling", ["both.db", "./both.db?timeout=5", "x/../both.db"])
def test_one_database_for_two_masters_is_refused(tmp_path, spec_of, spelling):
    storage, tracking = f"sqlite:///{tmp_path}/both.db", f"sqlite:///{tmp_path}/{spelling}"
    with pytest.raises(UsageError, match="a database each"):
        run_study(spec_of(storage=storage, tracking=tracking), tmp_path)


@pytest.mark.parametrize("name", ["a?b", "a%20b", "ä #b"])
def test_a_home_of_any_name_holds_all_its_files(tmp_path, spec_of, name):
    home = tmp_path / name
    run_study(spec_of(trials=1), home)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (home / "studies.db").exists()
    assert [row["study"] for row in list_studies(home, None)] == ["small"]
    assert find_study("small", home, None).study_name == "small"


@pytest.mark.parametrize("url", ["sqlite:///{}/q.db?timeout=100", "sqlite+pysqlite:///{}/p.db"])
def test_a_study_in_a_storage_of_any_spelling_is_found(tmp_path, spec_of, url):
    url, home = url.format(tmp_path), tmp_path / "home"
    run_study(spec_of(trials=1, storage=url), home)
    assert [row["study"] for row in list_studies(home, url)] == ["small"]
    assert find_study("small", home, url).study_name == "small"
    with pytest.raises(UsageError, match="--storage"):
        find_study("small", home, None)


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
@pytest.mark.timeout(240)
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
@pytest.mark.timeout(120)
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


@pytest.mark.slow
def test_tpe_comes_within_two_points_of_the_exact_constrained_optimum(tmp_path):
    """On the demo's tune users; the yardstick is exact along gamma, on a grid of everything else."""
    opened = open_study(load_spec("demo", {"tracking": "none"}), tmp_path)
    part, tables = opened.objective._part("tune"), opened.objective.tables
    exact = 0.0
    for kappa in np.geomspace(0.5, 50, 6):
        log_pi, _ = taste(part.counts, tables.global_probs, "user", kappa)
        for source in tables.log_model.values():
            for beta in np.linspace(0, 2, 17):
                found = line_optimum(part.scores - beta * source, log_pi, part.gold, (-0.5, 2.0), 0.6, 0.55)
                exact = max(exact, found.accuracy if found else 0.0)
    study = optuna.create_study(direction="maximize", sampler=make_sampler("tpe", 0))
    baseline = opened.baseline
    runner = TrialRunner(
        study, opened.space, opened.rooms, opened.objective, baseline, ["accuracy"], opened.constraints, seed=0
    )
    for _ in range(200):
        runner.run_one()
    assert study.best_value >= exact - 0.02
    assert study.best_value <= exact + 0.01
    assert exact > baseline.metrics["accuracy"] + 0.10
