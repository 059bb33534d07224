"""What a training cost, wherever it was done."""

from datetime import timedelta
from types import SimpleNamespace

import optuna
import pytest
from optuna.trial import create_trial

from studies.verdict.cost import training_s


def opened(seconds):
    """A study of two trials with the same adapter and other calibrations; the first took so long."""
    study = optuna.create_study()
    for kappa, took in ((1.0, seconds), (2.0, 0.25)):
        space = {"kappa": optuna.distributions.FloatDistribution(0.0, 5.0)}
        trial = create_trial(params={"kappa": kappa}, distributions=space, value=0.0)
        trial.datetime_start = trial.datetime_complete - timedelta(seconds=took)
        study.add_trial(trial)
    rooms = SimpleNamespace(decode=lambda raw: {"adapter": "lora", "calibration": raw["kappa"]})
    return SimpleNamespace(study=study, rooms=rooms)


@pytest.mark.parametrize(("trained", "told"), [(0.0, 40.0), (12.0, 40.0), (900.0, 900.0)])
def test_a_training_is_that_of_the_first_trial_or_of_another_study_that_took_longer(monkeypatch, trained, told):
    monkeypatch.setattr("studies.verdict.cost.chain.training_s", lambda fitted: trained)
    assert training_s(opened(40.0), 1, None) == told


@pytest.mark.parametrize(("trained", "told"), [(0.0, None), (900.0, 900.0)])
def test_a_carried_trial_took_what_its_adapters_did(monkeypatch, trained, told):
    monkeypatch.setattr("studies.verdict.cost.chain.training_s", lambda fitted: trained)
    monkeypatch.setattr("studies.verdict.cost.kept_from_elsewhere", lambda trial: True)
    assert training_s(opened(40.0), 0, None) == told
