"""Trials read row by row are those that Optuna reads, whatever is in them."""

import json
import math

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState

from studies import rows
from studies.rows import finished_trials
from studies.runner import run_study
from studies.storage import open_storage, storage_url

SPACE = {
    "real": FloatDistribution(-1, 1),
    "log": FloatDistribution(1e-6, 1, log=True),
    "step": FloatDistribution(0, 1, step=0.25),
    "whole": IntDistribution(1, 9),
    "log_whole": IntDistribution(1, 1024, log=True),
    "choice": CategoricalDistribution([None, True, 3, 0.5, "x", "ü"]),
}


def odd(storage) -> None:
    """A study with all that a trial can hold, beside another one."""
    optuna.create_study(storage=storage, study_name="other").add_trial(optuna.create_trial(value=1.0))
    study = optuna.create_study(storage=storage, study_name="odd", directions=["minimize", "maximize"])
    for place in range(12):
        params = {
            "real": -0.5, "log": 1e-3, "step": 0.75, "whole": 3, "log_whole": 256,
            "choice": SPACE["choice"].choices[place % 6],
        }  # fmt: skip
        params = dict(list(params.items())[place % 4 :])
        state = [TrialState.COMPLETE, TrialState.FAIL, TrialState.PRUNED][place % 3]
        study.add_trial(
            optuna.create_trial(
                state=state,
                values=[math.inf, -math.inf] if state == TrialState.COMPLETE else None,
                params=params,
                distributions={name: SPACE[name] for name in params},
                user_attrs={"measured": {"metrics": {"nll": None, "a": 0.1}}, "text": "ü\n", "place": place},
                intermediate_values={3: math.nan, 1: 0.5, 2: math.inf, 0: -math.inf} if place % 2 else {},
                constraints={"size": place - 3.5, "cost": 1e9},
            )
        )
    study.enqueue_trial({"real": 0.25})
    trial = study.ask({"real": SPACE["real"]})
    trial.set_user_attr("half", 1)
    study.enqueue_trial({"real": 0.5})


def of_optuna(storage, name):
    study = optuna.load_study(study_name=name, storage=storage)
    return study.get_trials(states=tuple(rows.ENDED.values()))


def told(trial) -> str:
    """All that a trial holds, whatever the order of its attributes."""
    return json.dumps(vars(trial), sort_keys=True, default=repr)


def same(ours, theirs) -> bool:
    """Equal in everything; NaN is equal to itself here."""
    assert [t.number for t in ours] == [t.number for t in theirs]
    for one, other in zip(ours, theirs, strict=True):
        assert told(one) == told(other)
        assert one.constraints == other.constraints
        assert list(one.params) == list(other.params)
    return len(ours) > 0


@pytest.mark.parametrize("schema", [rows.SCHEMA, rows.SCHEMA + 1])
def test_every_kind_of_parameter_state_value_and_attribute(tmp_path, monkeypatch, schema):
    storage = open_storage(storage_url(tmp_path, None))
    odd(storage)
    monkeypatch.setattr(rows, "SCHEMA", schema)
    found = finished_trials(storage, "odd")
    assert same(found, of_optuna(storage, "odd"))
    assert len(found) == 12
    assert same(finished_trials(storage, "other"), of_optuna(storage, "other"))


def test_a_study_of_chamtune(tmp_path, spec_of, kept_scores, no_results):
    run_study(spec_of(trials=8), tmp_path)
    storage = open_storage(storage_url(tmp_path, None))
    assert same(finished_trials(storage, "small"), of_optuna(storage, "small"))


def test_optuna_states_the_layout_that_is_read(tmp_path, monkeypatch):
    storage = open_storage(storage_url(tmp_path, None))
    odd(storage)
    monkeypatch.setattr(storage, "get_all_trials", lambda *_, **__: pytest.fail("read by Optuna"))
    assert len(finished_trials(storage, "odd")) == 12
