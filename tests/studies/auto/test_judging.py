"""What an arm's trials say of it, and how it stands by them."""

from datetime import datetime, timedelta
from types import SimpleNamespace

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState, create_trial

from personalization.data.records import Question
from personalization.evaluation import Evaluation
from studies.auto.arms import ARMS, Scene, together
from studies.auto.judging import Entry, Judge, baseline, first_lift, judge, judged, measure, own_trials, unmeasured
from studies.carried import CARRIED
from studies.constraints import parse_constraint


@pytest.mark.parametrize(
    ("states", "said"),
    [
        ((), "no trial came to an end in its time"),
        ((TrialState.PRUNED, TrialState.PRUNED), "of its 2 trials 2 were ended early"),
        ((TrialState.COMPLETE, TrialState.PRUNED), "of its 2 trials 1 were ended early"),
        ((TrialState.COMPLETE,), "none of its 1 trials keeps to the constraints"),
        ((TrialState.FAIL, TrialState.FAIL), "all of its 2 trials failed"),
    ],
)
def test_an_arm_without_a_result_is_said_to_be_what_it_is(states, said):
    study = optuna.create_study()
    for state in states:
        value = 0.1 if state is TrialState.COMPLETE else None
        why = {"failure": "its parameters"}
        study.add_trial(create_trial(state=state, value=value, user_attrs=why, system_attrs={"constraints": [1.0]}))
    assert said in unmeasured(SimpleNamespace(opened=SimpleNamespace(study=study), broken=set()))


@pytest.mark.parametrize(
    ("direction", "values", "lift"),
    [
        ("maximize", (0.5, 0.25, 0.75), 0.25),
        ("minimize", (0.5, 0.25, 0.75), 0.25),
        ("maximize", (0.5, 0.25), 0.0),
        ("maximize", (0.5,), 0.125),
        ("maximize", (), 0.125),
    ],
)
def test_a_first_slice_brought_what_its_best_trial_has_over_its_first(direction, values, lift):
    study = optuna.create_study(direction=direction)
    study.add_trials([create_trial(value=value, system_attrs={"constraints": []}) for value in values])
    opened = SimpleNamespace(study=study, spec=SimpleNamespace(optimize={"accuracy": direction}))
    assert first_lift(SimpleNamespace(opened=opened), [0.0, 0.125, 0.75]) == lift


@pytest.mark.parametrize(("seconds", "pace"), [(4.5, 1.5), (0.01, 0.5), (60.0, 2.0), (None, 1.0)])
def test_what_is_said_of_an_arm_follows_its_first_trial_that_ended(seconds, pace):
    scene, begun = Scene("causal", 100, 300, 50.0, 50.0, 1.0, 30.0), datetime(2026, 1, 1)
    study = optuna.create_study()
    ended = [(TrialState.FAIL, 0.1), (TrialState.COMPLETE, seconds)] if seconds else [(TrialState.FAIL, 0.1)]
    for state, took in ended:
        trial = create_trial(state=state, value=0.5 if state is TrialState.COMPLETE else None)
        trial.datetime_start, trial.datetime_complete = begun, begun + timedelta(seconds=took)
        study.add_trial(trial)
    below = Entry(ARMS["head"], SimpleNamespace(study=study))
    assert below.pace(scene) == pace
    assert below.answering(scene) == pace * ARMS["head"].answering(scene)
    untried = SimpleNamespace(study=optuna.create_study())
    above = Entry(together(ARMS["head"], ARMS["shared"]), untried, below=below)
    assert above.pace(scene) == pace  # it runs nothing that the arm below has not run


USERS = ("ann", "bob")


def told(right):
    """Answers to two questions of each user, of which these are right; ids are unique in a part alone."""
    shares = np.where(np.array(right), 0.9, 0.2)
    ids, users = ("1", "2", "3", "4"), ("ann", "ann", "bob", "bob")
    log_probs = np.log(np.column_stack([shares, 1 - shares]))
    return Evaluation(("a", "b"), ids, users, np.zeros(4, dtype=np.int64), log_probs, ["user"] * 4)


@pytest.fixture
def opened(monkeypatch):
    """A study whose users are in tune and in select; of its settings "plain" is the model itself."""
    monkeypatch.setattr("studies.auto.judging.settled", lambda opened, params: params)
    answers = {
        ("plain", "tune"): told([1, 1, 0, 0]),
        ("plain", "select"): told([0, 0, 0, 0]),
        ("good", "tune"): told([1, 1, 1, 0]),
        ("good", "select"): told([1, 0, 0, 0]),
        ("flat", "tune"): told([1, 1, 1, 1]),
        ("flat", "select"): told([1, 1, 1, 1]),
    }
    questions = tuple(Question(str(n + 1), USERS[n // 2], "text", (), "a") for n in range(4))
    part = SimpleNamespace(questions=questions)
    learned = set()
    return SimpleNamespace(
        study=optuna.create_study(direction="maximize"),
        spec=SimpleNamespace(optimize={"accuracy": "maximize"}),
        rooms=SimpleNamespace(decode=lambda params: params["named"], BASELINE="plain"),
        objective=SimpleNamespace(
            learned_labels=lambda params: params in learned, evaluate=lambda params, part: answers[params, part]
        ),
        splits=SimpleNamespace(part=lambda name: part, select=part),
        constraints=[],
        learned=learned,
    )


def tried(opened, *names):
    for place, name in enumerate(names):
        choice = optuna.distributions.CategoricalDistribution(("good", "flat"))
        opened.study.add_trial(
            create_trial(value=1 - place / 10, params={"named": name}, distributions={"named": choice}, constraints={})
        )


def standing_of(opened):
    entry, judges = Entry(ARMS["lora"], opened), list(dict.fromkeys(own for own, _ in judged(opened)))
    measure(entry, opened)
    judge(entry, opened, judges, {"slices": []})
    return judges, entry


def test_an_arm_is_judged_beside_the_same_questions_where_parts_have_equal_ids(opened):
    tried(opened, "good")
    judges, entry = standing_of(opened)
    assert judges == [Judge(part, user) for part in ("tune", "select") for user in USERS]
    assert entry.standing.gains.tolist() == [0, 1, 1, 0]
    assert baseline(opened, entry.answers).correct.sum() == 2


def test_what_learned_from_tune_users_is_judged_by_the_others_alone_where_users_are_the_same(opened):
    tried(opened, "good")
    opened.learned.add("good")
    _, entry = standing_of(opened)
    assert entry.standing.gains.tolist() == pytest.approx([np.nan, np.nan, 1, 0], nan_ok=True)


@pytest.mark.parametrize(("names", "trial"), [(("flat", "good"), 1), (("flat",), None)])
def test_an_arm_stands_by_its_best_trial_that_keeps_the_constraints_there_too(opened, names, trial):
    tried(opened, *names)
    opened.constraints.append(parse_constraint("accuracy", "<= 0.9"))
    _, entry = standing_of(opened)
    assert (entry.trial, entry.broken) == (trial, {0})
    if trial is None:
        assert entry.standing is None
        assert unmeasured(entry) == "out: its 1 best trials break a constraint on users that they did not learn from"


def test_trials_that_ran_in_another_study_are_its_own_and_carried_ones_are_not():
    storage = optuna.storages.InMemoryStorage()
    base = SimpleNamespace(storage=storage)
    assert own_trials(base, "race.lora") == []
    study = optuna.create_study(study_name="race.lora", storage=storage)
    study.add_trial(create_trial(value=0.5))
    study.add_trial(create_trial(value=0.5, user_attrs={CARRIED: {"study": "other", "trial": 3}}))
    study.ask()
    assert [trial.number for trial in own_trials(base, "race.lora")] == [0]
