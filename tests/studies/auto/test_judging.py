"""What is said of an arm that has nothing to stand by."""

from types import SimpleNamespace

import optuna
import pytest
from optuna.trial import TrialState, create_trial

from studies.auto.judging import unmeasured


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
