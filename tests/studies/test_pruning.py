"""What a trial tells its pruner, and when it is stopped."""

import numpy as np
import optuna
import pytest

from personalization.evaluation import Evaluation, all_metrics
from studies.pruning import make_pruner, outrun, watch

LABELS = ("a", "b")
USERS = tuple(f"u{i // 4}" for i in range(80))


def evaluation(share_right, seed=0, users=20):
    """Questions of the first users, so many of them right."""
    n = 4 * users
    right = np.random.default_rng(seed).random(80)[:n] < share_right
    gold = np.zeros(n, dtype=np.int64)
    log_probs = np.log(np.where(right[:, None], [0.8, 0.2], [0.3, 0.7]))
    return Evaluation(LABELS, tuple(f"q{i}" for i in range(n)), USERS[:n], gold, log_probs, ["user"] * n)


BASELINE = evaluation(0.5, seed=9)


def run(study, name, optimize, share):
    """One trial over five blocks of four users; whether it was stopped, and after which block."""
    trial = study.ask()
    report = watch(name, trial, optimize, BASELINE)
    whole = evaluation(share, seed=trial.number)
    for block in range(1, 5):
        try:
            report(whole.only(np.arange(16 * block)))
        except optuna.TrialPruned:
            study.tell(trial, state=optuna.trial.TrialState.PRUNED)
            return block
    measured = all_metrics(whole, BASELINE)
    study.tell(trial, [measured[name] for name in optimize])
    return None


def test_wilcoxon_compares_the_same_users():
    study = optuna.create_study(direction="maximize", pruner=make_pruner("wilcoxon"))
    assert run(study, "wilcoxon", ["accuracy"], 0.9) is None
    best = study.trials[0].intermediate_values
    assert list(best) == list(range(16))
    assert best[3] == evaluation(0.9).correct[12:16].mean()
    assert run(study, "wilcoxon", ["accuracy"], 0.1) == 1
    assert run(study, "wilcoxon", ["accuracy"], 0.95) is None


def test_wilcoxon_compares_trainings_at_the_same_evaluation():
    study = optuna.create_study(direction="maximize", pruner=make_pruner("wilcoxon"))
    for shares, stopped_at in (((0.1, 0.9), None), ((0.1, 0.9, 0.9), None), ((0.1, 0.1), 2)):
        trial = study.ask()
        report = watch("wilcoxon", trial, ["accuracy"], BASELINE)
        ended = None
        for step, share in enumerate(shares, start=1):
            try:
                report(evaluation(share), step)
            except optuna.TrialPruned:
                ended = step
                break
        assert ended == stopped_at
        study.tell(trial, None if ended else shares[-1], optuna.trial.TrialState.PRUNED if ended else None)
    assert list(study.trials[1].intermediate_values) == list(range(60))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["wilcoxon", "median"])
def test_a_loss_is_stopped_when_it_is_high(name):
    study = optuna.create_study(direction="minimize", pruner=make_pruner(name))
    for _ in range(6):
        run(study, name, ["nll"], 0.9)
    assert sum(trial.state.name == "COMPLETE" for trial in study.trials) >= 3
    assert run(study, name, ["nll"], 0.1) is not None
    assert run(study, name, ["nll"], 1.0) is None


def test_metrics_against_the_baseline_are_taken_on_the_users_seen():
    study = optuna.create_study(direction="maximize", pruner=make_pruner("median"))
    run(study, "median", ["accuracy_gain"], 0.9)
    first = study.trials[0].intermediate_values[1]
    assert first == pytest.approx(evaluation(0.9).correct[:16].mean() - BASELINE.correct[:16].mean())


def test_dominated_stops_what_is_worse_in_every_metric_twice_in_a_row():
    study = optuna.create_study(directions=["maximize", "minimize"])
    goals = ["accuracy", "nll"]
    assert run(study, "dominated", goals, 0.9) is None
    assert run(study, "dominated", goals, 0.1) == 2
    assert run(study, "dominated", goals, 1.0) is None
    assert study.trials[0].user_attrs["running"][0] == [
        evaluation(0.9).only(np.arange(16)).metrics[goal] for goal in goals
    ]


def test_dominated_spares_what_is_better_in_one_metric():
    study = optuna.create_study(directions=["maximize", "maximize"])
    assert run(study, "dominated", ["accuracy", "entropy"], 1.0) is None
    assert run(study, "dominated", ["accuracy", "entropy"], 0.5) is None


def test_an_infeasible_trial_dominates_nothing():
    study = optuna.create_study(directions=["maximize", "minimize"])
    trial = study.ask()
    trial.set_constraint("entropy", 1.0)
    trial.set_user_attr("running", [[1.0, 0.0]] * 4)
    study.tell(trial, [1.0, 0.0])
    assert run(study, "dominated", ["accuracy", "nll"], 0.5) is None


def test_without_a_pruner_nothing_is_watched():
    study = optuna.create_study(direction="maximize")
    assert watch("none", study.ask(), ["accuracy"], BASELINE) is None


def test_a_training_that_goes_on_is_judged_at_its_own_step():
    study = optuna.create_study(direction="maximize", pruner=make_pruner("median"))
    trial = study.ask()
    report = watch("median", trial, ["accuracy"], BASELINE)
    for step in (3, 4):
        report(evaluation(0.7), step)
    study.tell(trial, 0.7)
    assert list(study.trials[0].intermediate_values) == [3, 4]
    several = optuna.create_study(directions=["maximize", "minimize"])
    for share, steps, stopped in ((0.9, (1, 2, 3, 4), False), (0.1, (3,), False), (0.1, (3, 4), True)):
        trial = several.ask()
        report = watch("dominated", trial, ["accuracy", "nll"], BASELINE)
        try:
            for step in steps:
                report(evaluation(share), step)
            assert not stopped
        except optuna.TrialPruned:
            assert stopped
        several.tell(trial, [share, 1 - share])


def test_what_cannot_beat_other_answers_any_more_is_ended_and_held_out_items_end_nothing():
    report = outrun(evaluation(0.9), "accuracy")
    report(evaluation(0.9, seed=1).only(np.arange(64)))
    with pytest.raises(optuna.TrialPruned):
        report(evaluation(0.2).only(np.arange(32)))
    others = evaluation(0.1)
    report(Evaluation(LABELS, ("held out",), ("u0",), others.gold[:1], others.log_probs[:1], ["user"]))
    assert outrun(None, "accuracy") is None
