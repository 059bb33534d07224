"""A route as trials see it: what is measured is what is served, whatever is told meanwhile."""

import json
from dataclasses import asdict

import numpy as np
import pytest

from objectives.classification import Classification
from personalization.data.splits import split_users
from personalization.deployment import served
from personalization.errors import UsageError
from personalization.methods.history.routing import Router
from search_spaces import chain_space
from search_spaces.route import Params, arms_of
from studies.study import open_study
from tests.conftest import SHARES
from tests.personalization.stages.chains import ACTIVE, TRAINED, params_of
from tests.tiny import short_world

PLAIN = params_of(("calibration",), ACTIVE["calibration"][0])
ITEMS = params_of(("prompt", "calibration"), ACTIVE["prompt"][0], ACTIVE["calibration"][0])
STEERED = params_of(("steering", "calibration"), ACTIVE["steering"][0], ACTIVE["calibration"][1])
LORA = params_of(("adapter", "calibration"), {"adapter.adapter": "lora", **TRAINED}, ACTIVE["calibration"][1])


@pytest.fixture
def of(scorer):
    """A function that makes the objective of a route."""
    splits = split_users(short_world(5, users=24, questions_per_user=2), SHARES)
    return lambda: Classification(chain_space(("route",)), splits, scorer)


@pytest.fixture
def mixing(monkeypatch):
    """Every second question goes to the second chain."""
    monkeypatch.setattr(Router, "arms", lambda _, told: np.arange(len(told)) % 2)


@pytest.mark.parametrize("second", [ITEMS, STEERED], ids=["items", "steered"])
def test_what_is_measured_is_what_is_served(of, scorer, mixing, second):
    objective, params = of(), params_of(("route",), {"route.arms": arms_of([PLAIN, second])})
    tune = objective.splits.tune
    deployed = served({"task": tune.task, "labels": tune.labels}, objective.fitted(params), scorer)
    for part in ("select", "confirm"):
        measured = objective.evaluate(params, part).log_probs
        assert np.allclose(measured, deployed.aligned(objective.splits.part(part)), atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("second", [STEERED, LORA], ids=["steered", "lora"])
def test_a_report_changes_nothing(of, second):
    params = params_of(("route",), {"route.arms": arms_of([PLAIN, second])})
    told, alone = of(), of()
    before = told.evaluate(params, report=lambda *_: None).log_probs
    assert (before == alone.evaluate(params).log_probs).all()
    for one, other in zip(
        told.fitted(params).learned["route"].router, alone.fitted(params).learned["route"].router, strict=True
    ):
        assert np.array_equal(one, other)


def test_arms_are_told_with_all_their_parameters_and_numbers_of_any_kind():
    params = PLAIN.changed(kappa=np.float32(3.0))
    assert Params(arms_of([params, ITEMS])).chains == (params, ITEMS)


WHOLE = {"calibration": asdict(PLAIN["calibration"])}
BACK = {**WHOLE, "prompt": asdict(ITEMS["prompt"])}


@pytest.mark.parametrize(
    ("arms", "said"),
    [
        ("[x]", "route.arms is no list of stage -> parameters"),
        ('[{"magic": {}}, {"magic": {}}]', "route.arms is no list of stage -> parameters"),
        ('[{"calibration": {}}, {"calibration": {}}]', "route.arms names not every parameter"),
        ("[]", "a route between 0 chains; give start_from: \\[STUDY, STUDY\\]"),
        (json.dumps([WHOLE]), "a route between 1 chains; give start_from: "),
        (json.dumps([WHOLE, BACK]), "its order is prompt, calibration"),
        (json.dumps([WHOLE, {"route": asdict(Params())}]), "stage route cannot stand there"),
    ],
)
def test_arms_that_cannot_be_are_one_line(spec_of, tmp_path, arms, said):
    with pytest.raises(UsageError, match=said):
        open_study(spec_of(chain=["route"], space={"arms": arms}), tmp_path)
