"""Samplers, pruners, and what they make of a space."""

import json
from dataclasses import replace

import numpy as np
import optuna
import pytest

from objectives.classification import Classification
from personalization.evaluation import gold_indices
from personalization.methods.taste.priors import history_counts, taste
from personalization.methods.taste.solvers import line_optimum
from personalization.stages.work import scores_of
from studies import results
from studies.pruning import PRUNERS
from studies.runner import run_study
from studies.samplers import SAMPLERS, make_sampler
from studies.spec import load_spec
from studies.study import find_study, open_study, ranked
from studies.trial import MEASURED, TrialRunner
from tests.tiny import of_table

pytestmark = pytest.mark.usefixtures("kept_scores")


def trials_of(home, name="small"):
    return find_study(name, home, None).get_trials(deepcopy=False)


@pytest.mark.parametrize("sampler", of_table(SAMPLERS, "tpe", "grid"))
def test_every_sampler_runs_and_resumes(tmp_path, spec_of, no_results, sampler):
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
def test_every_pruner_runs_and_leaves_no_pruned_trial_feasible(tmp_path, spec_of, no_results, pruner):
    result = run_study(spec_of(trials=3 if pruner == "none" else 12, pruner=pruner, constraints={}), tmp_path)
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


@pytest.mark.slow
def test_repeated_parameters_are_not_measured_again(tmp_path, spec_of, monkeypatch):
    measured = []
    real = Classification.evaluate

    def counting(self, params, part="tune", report=None):
        measured.append(params)
        return real(self, params, part, report)

    monkeypatch.setattr(Classification, "evaluate", counting)
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


@pytest.mark.slow
def test_the_same_seed_gives_the_same_trials(tmp_path, spec_of):
    run_study(spec_of(), tmp_path / "a")
    run_study(spec_of(), tmp_path / "b")
    first, second = ([(t.params, t.value) for t in trials_of(tmp_path / name)] for name in "ab")
    assert first == second
    run_study(spec_of(seed=1), tmp_path / "c")
    assert [t.params for t in trials_of(tmp_path / "c")] != [p for p, _ in first]


@pytest.mark.slow
def test_tpe_comes_within_two_points_of_the_exact_constrained_optimum(tmp_path):
    """On the demo's tune users; the yardstick is exact along gamma, on a grid of everything else."""
    opened = open_study(load_spec("demo", {"tracking": "none"}), tmp_path)
    work, tools = opened.objective.work("tune"), opened.objective._tools
    scores, gold, counts = scores_of(work, tools), gold_indices(work.dataset), history_counts(work.dataset)
    learned = opened.objective.fitted(opened.rooms.BASELINE).learned["calibration"]
    exact = 0.0
    for kappa in np.geomspace(0.5, 50, 6):
        log_pi, _ = taste(counts, learned.global_probs, "user", kappa)
        for source in learned.plain.bias.values():
            for beta in np.linspace(0, 2, 17):
                found = line_optimum(scores - beta * source, log_pi, gold, (-0.5, 2.0), 0.6, 0.55)
                exact = max(exact, found.accuracy if found else 0.0)
    study = optuna.create_study(direction="maximize", sampler=make_sampler("tpe", 0))
    runner = TrialRunner(replace(opened, study=study), seed=0)
    for _ in range(200):
        runner.run_one()
    assert study.best_value >= exact - 0.02
    assert study.best_value <= exact + 0.01
    assert exact > opened.baseline.metrics["accuracy"] + 0.10
