"""What an arm's trials say of it."""

from types import SimpleNamespace

import optuna
import pytest
from optuna.trial import TrialState, create_trial

from studies.auto.judging import first_lift, unmeasured


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
    assert said in unmeasured(SimpleNamespace(opened=SimpleNamespace(study=study)))


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
