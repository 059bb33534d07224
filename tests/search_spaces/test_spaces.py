"""Contract: every space listed in SPACES."""

from dataclasses import asdict

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution

from objectives import OBJECTIVES
from personalization.deployment import METHODS
from search_spaces import SPACES, load_space, needed, overridden, parameters
from search_spaces import calibration as calibration_space


def test_every_objective_has_a_space_and_a_method_that_serves_it():
    assert set(SPACES) == set(OBJECTIVES) == set(METHODS)


@pytest.mark.parametrize("name", SPACES)
class TestSpace:
    def test_is_static_and_can_be_asked_for(self, name):
        space = load_space(name)
        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
        for _ in range(20):
            trial = study.ask(dict(space.SPACE))
            params = space.decode(trial.params)
            assert set(asdict(params)) == set(space.SPACE)
            assert space.complexity(params) >= space.complexity(space.BASELINE)
            study.tell(trial, 0.0)

    def test_choices_survive_a_database(self, name):
        for distribution in load_space(name).SPACE.values():
            if isinstance(distribution, CategoricalDistribution):
                assert all(isinstance(choice, str | int | float | bool) for choice in distribution.choices)

    def test_decoding_twice_changes_nothing(self, name):
        space = load_space(name)
        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
        for _ in range(20):
            params = space.decode(study.ask(dict(space.SPACE)).params)
            assert space.decode(asdict(params)) == params


def test_calibrations_with_the_same_effect_are_the_same_params():
    raw = {"beta": 0.0, "gamma": 0.7, "kappa": 3.0, "tau": 1.0, "prior_mode": "uniform", "source": "neutral"}
    same = {**raw, "gamma": -0.2, "kappa": 9.0, "source": "batch"}
    assert calibration_space.decode(raw) == calibration_space.decode(same) == calibration_space.BASELINE


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ({"tau": 1.0}, CategoricalDistribution([1.0])),
        ({"gamma": [0, 1]}, CategoricalDistribution([0.0, 1.0])),
        ({"gamma": {"low": -1, "high": 1}}, FloatDistribution(-1, 1)),
        ({"kappa": {"low": 1, "high": 9, "step": 2}}, FloatDistribution(1, 9, step=2)),
        ({"kappa": {"low": 1, "high": 9}}, FloatDistribution(1, 9, log=True)),
        ({"prior_mode": ["user", "global"]}, CategoricalDistribution(["user", "global"])),
    ],
)
def test_overrides(override, expected):
    (name,) = override
    assert overridden(calibration_space.SPACE, override)[name] == expected


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ({"gama": 1.0}, "space.gama: no such parameter; this objective has, with this model, beta, gamma"),
        ({"prior_mode": "users"}, "allowed are user, global, uniform"),
        ({"gamma": "high"}, "must be a number"),
        ({"gamma": {"low": 0}}, "'high'"),
        ({"gamma": {"low": 0, "high": 1, "steps": 3}}, "unknown key 'steps'"),
        ({"gamma": {"low": 2, "high": 1}}, "space.gamma"),
        ({"gamma": []}, "must be a number"),
    ],
)
def test_wrong_overrides_are_one_line(override, message):
    with pytest.raises(ValueError, match="space") as caught:
        overridden(calibration_space.SPACE, override)
    assert message in str(caught.value)


def test_a_product_gate_that_cannot_open_is_no_steering():
    space = load_space("steering")
    raw = asdict(space.BASELINE) | {"gate": "product", "alpha_personal": 1.0, "alpha_general": 0.0, "start": 0.7}
    assert space.decode(raw) == space.BASELINE
    for strength in (0.5, -0.5):
        assert space.decode(raw | {"alpha_general": strength}).gate == "product"


def test_steering_with_the_same_effect_is_the_same_params():
    space = load_space("steering")
    raw = asdict(space.BASELINE) | {"alpha_general": 0.5, "start": 0.7}
    for same in ({"direction": "svd"}, {"gate": "cosine", "open_share": 1.0}, {"groups": 3, "shrink": 9.0}):
        assert space.decode(raw | same) == space.decode(raw)
    listed = space.decode(raw | {"place": "2,4", "start": 0.1, "count": 7})
    assert (listed.place, listed.start, listed.count) == ("2,4", space.BASELINE.start, space.BASELINE.count)


def test_a_list_of_layers_is_a_choice_that_a_spec_may_add():
    space = load_space("steering")
    chosen = overridden(space.SPACE, {"place": ["auto", "2,4"]}, space.OPEN)
    assert chosen["place"] == CategoricalDistribution(["auto", "2,4"])
    for wrong in ("2;4", "upper", ["auto", "2,"]):
        with pytest.raises(ValueError, match="allowed are start, auto"):
            overridden(space.SPACE, {"place": wrong}, space.OPEN)


@pytest.mark.parametrize(
    ("overrides", "present", "absent"),
    [
        ({"adapter": ["none", "head"]}, {"c", "c_own", "groups"}, {"rank", "lr", "match", "prefix_tokens", "dropout"}),
        ({"adapter": "lora", "level": "unified"}, {"rank", "dropout"}, {"c", "c_own", "groups", "prefix_tokens"}),
        ({"adapter": ["head"], "level": ["unified"], "rank": 4}, {"c", "rank"}, {"c_own", "cluster_by", "epochs"}),
        ({}, {"rank", "c", "groups", "prefix_tokens"}, set()),
    ],
)
def test_what_no_choice_reads_is_not_asked_for(overrides, present, absent):
    space = load_space("adapter")
    left = needed(space, overridden(parameters(space, "causal"), overrides), overrides)
    assert present <= left.keys()
    assert not absent & left.keys()
    assert left.keys() <= space.SPACE.keys()


@pytest.mark.parametrize("name", SPACES)
def test_what_is_read_with_others_names_parameters_and_choices(name):
    space = load_space(name)
    for parameter, needs in getattr(space, "READ_WITH", {}).items():
        assert parameter in space.SPACE
        for other, choices in needs.items():
            assert all(space.SPACE[other]._contains(space.SPACE[other].to_internal_repr(c)) for c in choices)
