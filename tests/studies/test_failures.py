"""What fails: trials, outages, and figures without a value."""

import errno
import itertools
import math
import sqlite3

import optuna
import pytest
from optuna.trial import TrialState

from objectives.classification import Classification
from personalization.errors import UnavailableError
from personalization.stages.facts import Facts
from studies.runner import run_study
from studies.shown.display import print_result
from studies.shown.show import describe_study
from studies.storage import reason
from studies.study import find_study, finished
from studies.trial import MEASURED, Outage, TrialRunner, outcome_of

pytestmark = pytest.mark.usefixtures("kept_scores")


def trials_of(home, name="small"):
    return find_study(name, home, None).get_trials(deepcopy=False)


def test_a_failing_trial_is_recorded_and_the_study_goes_on(tmp_path, spec_of, monkeypatch, no_results):
    real = Classification.evaluate
    calls = iter(range(1000))

    def sometimes(self, params, part="tune", report=None):
        number = next(calls)
        if number == 2:
            raise RuntimeError("planted failure")
        evaluation = real(self, params, part, report)
        if number == 4:
            evaluation.metrics["accuracy"] = float("nan")
        return evaluation

    monkeypatch.setattr(Classification, "evaluate", sometimes)
    result = run_study(spec_of(trials=6), tmp_path)
    failed = [t for t in trials_of(tmp_path) if t.state == TrialState.FAIL]
    assert (result.failed, result.complete) == (2, 4)
    assert "RuntimeError: planted failure" in failed[0].user_attrs["failure"]
    assert "non_finite_objective: accuracy is nan" in failed[1].user_attrs["failure"]


@pytest.fixture
def broken(monkeypatch, no_results):
    """A function that lets trials fail with what `error` gives, where it gives something."""
    real = TrialRunner._evaluated

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
    real = Classification.evaluate

    def infinite(self, params, part="tune", report=None):
        evaluation = real(self, params, part, report)
        evaluation.metrics["accuracy"] = math.inf
        return evaluation

    monkeypatch.setattr(Classification, "evaluate", infinite)
    assert run_study(spec_of(trials=6), tmp_path / "infinite").failed == 6


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
    real = Classification.evaluate

    def odd(self, params, part="tune", report=None):
        evaluation = real(self, params, part, report)
        evaluation.metrics["nll"], evaluation.metrics["brier"] = math.inf, math.nan
        return evaluation

    monkeypatch.setattr(Classification, "evaluate", odd)
    monkeypatch.setattr(Classification, "facts", lambda self, params: Facts(curves={"loss": [1.0, math.nan]}))
    for trials in (1, 2):
        result = run_study(spec_of(trials=trials, constraints={}), tmp_path)
        assert (result.complete, result.failed) == (trials, 0)
    trial = trials_of(tmp_path)[0]
    assert trial.user_attrs[MEASURED]["metrics"]["nll"] is trial.user_attrs[MEASURED]["metrics"]["brier"] is None
    assert trial.user_attrs[MEASURED]["curves"] == {"loss": [1.0, None]}
    assert not {"nll", "brier"} & set(outcome_of(trial).metrics)
    print_result(result, spec_of(constraints={}))
