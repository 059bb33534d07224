"""Contract: every space listed in SPACES, chains of them, and the objectives of earlier versions."""

from dataclasses import asdict
from functools import partial

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution

from personalization.methods.adapters.user_adapters import Plan
from personalization.methods.adapters.user_heads import HeadPlan
from personalization.stages import STAGES
from search_spaces import SPACES, chain_space, short_names, space_of
from search_spaces.aliases import ALIASES, alias_space
from search_spaces.conditions import is_read

WHOLE = tuple(SPACES)
CHAINS = [(name,) for name in SPACES] + [WHOLE, ("prompt", "calibration"), ("adapter", "steering", "calibration")]
ALL = [*(chain_space(chain) for chain in CHAINS), *map(alias_space, ALIASES)]
every = pytest.mark.parametrize("space", ALL, ids=[*map("+".join, CHAINS), *ALIASES])


def asked(space, count, seed=0, kind="causal"):
    """Raw values of random trials."""
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    return [study.ask(space.distributions(kind)).params for _ in range(count)]


def value_of(params, stage, name):
    """Of a parameter that a condition names; an absent stage has its baseline."""
    full = name if "." in name else f"{stage}.{name}"
    other, _, own = full.partition(".")
    return params.get_value(full) if other in params else getattr(space_of(other).BASELINE, own)


def test_every_stage_has_a_space():
    assert list(SPACES) == list(STAGES)


@pytest.mark.parametrize("stage", SPACES)
def test_parameters_have_baselines_and_conditions_name_parameters(stage):
    space = space_of(stage)
    own = asdict(space.BASELINE)
    assert {*space.SPACE, *getattr(space, "ON_REQUEST", {})} == set(own)
    for name, alternatives in space.READ.items():
        assert name in own
        for other in (other for one in alternatives for other in one):
            where, _, called = other.rpartition(".")
            assert called in asdict(space_of(where or stage).BASELINE)


@every
class TestSpace:
    def test_can_be_asked_for_and_is_never_simpler_than_the_baseline(self, space):
        for raw in asked(space, 20):
            assert space.complexity(space.decode(raw)) >= space.complexity(space.BASELINE)

    def test_choices_survive_a_database(self, space):
        for distribution in space.distributions("causal").values():
            if isinstance(distribution, CategoricalDistribution):
                assert all(isinstance(choice, str | int | float | bool) for choice in distribution.choices)

    def test_decoding_twice_changes_nothing(self, space):
        for raw in asked(space, 30, seed=1):
            params = space.decode(raw)
            flat = params.flat()
            assert space.of_flat(flat) == params
            assert len(flat) == sum(len(asdict(own)) for own in params.values())
            assert hash(params) == hash(space.of_flat(flat))

    def test_what_is_not_read_is_at_its_baseline(self, space):
        """Each condition holds of what comes out, not only of what went in."""
        seen = set()
        for raw in asked(space, 40, seed=2):
            params = space.decode(raw)
            for stage, own in params.items():
                for name, alternatives in space_of(stage).READ.items():
                    if not is_read(alternatives, partial(value_of, params, stage)):
                        assert getattr(own, name) == getattr(space.BASELINE[stage], name)
                        seen.add(name)
        assert seen

    def test_raw_values_are_found_again(self, space):
        for raw in asked(space, 20, seed=3):
            params = space.decode(raw)
            assert space.decode(space.raw(params.full())) == params


def test_names_are_short_where_no_other_stage_has_them():
    names = short_names(("adapter", "steering", "calibration"))
    assert names["steering.groups"] == "steering.groups"
    assert names["adapter.groups"] == "adapter.groups"
    assert names["calibration.beta"] == "beta"
    assert short_names(("steering", "calibration"))["steering.groups"] == "groups"


def test_calibrations_with_the_same_effect_are_the_same_params():
    space = alias_space("calibration")
    raw = {"beta": 0.0, "gamma": 0.7, "kappa": 3.0, "tau": 1.0, "prior_mode": "uniform", "source": "neutral"}
    same = {**raw, "gamma": -0.2, "kappa": 9.0, "source": "batch"}
    assert space.decode(raw) == space.decode(same) == space.BASELINE


@pytest.mark.parametrize(
    "moved", [{"prompt.k": 2}, {"steering.alpha_personal": 1.0}, {"steering.alpha_general": 0.5}], ids=str
)
def test_a_bias_by_prompts_with_nothing_to_classify_is_of_the_bare_model(moved):
    space, prior = chain_space(("prompt", "steering", "calibration")), {"calibration.beta": 1.0}
    found = [space.of_full({**moved, **prior, "calibration.source": source}) for source in ("neutral", "batch")]
    assert found[0] == found[1]
    assert space.of_full({**prior, "calibration.source": "neutral"})["calibration"].source == "neutral"


@pytest.mark.parametrize(
    ("override", "name", "expected"),
    [
        ({"tau": 1.0}, "tau", CategoricalDistribution([1.0])),
        ({"gamma": [0, 1]}, "gamma", CategoricalDistribution([0.0, 1.0])),
        ({"calibration.gamma": {"low": -1, "high": 1}}, "gamma", FloatDistribution(-1, 1)),
        ({"kappa": {"low": 1, "high": 9, "step": 2}}, "kappa", FloatDistribution(1, 9, step=2)),
        ({"kappa": {"low": 1, "high": 9}}, "kappa", FloatDistribution(1, 9, log=True)),
        ({"prior_mode": ["user", "global"]}, "prior_mode", CategoricalDistribution(["user", "global"])),
        ({"formula": "report"}, "formula", CategoricalDistribution(["report"])),
    ],
)
def test_overrides(override, name, expected):
    assert chain_space(("prompt", "calibration")).overridden("causal", override)[name] == expected


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ({"gama": 1.0}, "space.gama: no such parameter; this chain has, with this model, k, prompt.ranking"),
        ({"ranking": "bm25"}, "space.ranking: which one? Give prompt.ranking or calibration.ranking"),
        ({"prior_mode": "users"}, "allowed are similar, user, global, uniform"),
        ({"gamma": "high"}, "must be a number"),
        ({"gamma": {"low": 0}}, "a range has low and high, and high is missing"),
        ({"kappa": {"low": 1, "high": 2, "step": 5}}, "a step of 5 leads beyond the range from 1 to 2"),
        ({"gamma": {"low": 0, "high": 1, "steps": 3}}, "unknown key 'steps'"),
        ({"gamma": {"low": 2, "high": 1}}, "space.gamma"),
        ({"gamma": []}, "must be a number"),
        ({"gamma": True}, "must be a number"),
        ({"gamma": float("nan")}, "must be a number"),
        ({"gamma": {"low": 0, "high": float("inf")}}, "must be a number"),
        ({"tau": 0}, "must be above 0, and 0 is not"),
        ({"tau": {"low": -1, "high": 1}}, "must be above 0, and -1 is not"),
        ({"calibration.mix": [0, 2]}, "must be 1 or less, and 2 is more"),
        ({"beta": -1}, "must be 0 or more, and -1 is less"),
        ({"k": 1.5}, "must be a whole number, and 1.5 is none"),
        ({"gamma": 1, "calibration.gamma": 0}, "gamma and calibration.gamma are one parameter; keep one of them"),
    ],
)
def test_wrong_overrides_are_one_line(override, message):
    with pytest.raises(ValueError, match="space") as caught:
        chain_space(("prompt", "calibration")).overridden("causal", override)
    assert message in str(caught.value)


@pytest.mark.parametrize("stage", SPACES)
def test_what_a_number_may_be_at_most_is_of_a_number_that_is_searched(stage):
    space = space_of(stage)
    searched = {**space.SPACE, **getattr(space, "ON_REQUEST", {})}
    assert all(searched[name].high <= most for name, most in getattr(space, "MOST", {}).items())


def steering(**values):
    return chain_space(("steering",)).of_full({f"steering.{name}": value for name, value in values.items()})


def test_a_product_gate_that_cannot_open_is_no_steering():
    raw = {"gate": "product", "alpha_personal": 1.0, "start": 0.7}
    assert steering(**raw, alpha_general=0.0) == chain_space(("steering",)).BASELINE
    for strength in (0.5, -0.5):
        assert steering(**raw, alpha_general=strength)["steering"].gate == "product"


def test_steering_with_the_same_effect_is_the_same_params():
    raw = {"alpha_general": 0.5, "start": 0.7}
    for same in ({"direction": "svd"}, {"gate": "cosine", "open_share": 1.0}, {"groups": 3, "shrink": 9.0}):
        assert steering(**raw, **same) == steering(**raw)
    listed = steering(**{**raw, "place": "2,4", "start": 0.1, "count": 7})["steering"]
    assert (listed.place, listed.start, listed.count) == ("2,4", 0.0, 1)


def test_a_list_of_layers_is_a_choice_that_a_spec_may_add():
    space = chain_space(("steering", "calibration"))
    chosen = space.overridden("causal", {"place": ["auto", "2,4"]})
    assert chosen["place"] == CategoricalDistribution(["auto", "2,4"])
    for wrong in ("2;4", "upper", ["auto", "2,"]):
        with pytest.raises(ValueError, match="allowed are start, auto"):
            space.overridden("causal", {"place": wrong})


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
    left = alias_space("adapter").overridden("causal", overrides)
    assert present <= left.keys()
    assert not absent & left.keys()


def test_what_a_kind_of_model_does_not_read_is_not_asked_for():
    space = chain_space(("prompt", "calibration"))
    assert {"template", "scale"} <= space.distributions("encoder").keys()
    assert {"k", "prompt.ranking"} <= space.distributions("causal").keys()
    assert not {"template", "scale"} & space.distributions("causal").keys()
    assert alias_space("adapter").distributions("encoder")["adapter"].choices == ("none", "head", "lora")


def test_an_old_choice_of_adapter_is_one_of_two_stages():
    space = alias_space("adapter")
    for old, adapter, head in (("head", "none", "logistic"), ("lora", "lora", "none"), ("none", "none", "none")):
        params = space.decode({"adapter": old, "blend": 0.5, "level": "cluster", "groups": 3})
        assert (params["adapter"].adapter, params["head"].head) == (adapter, head)
        assert {3: "on", 4: "off"}[params["head"].groups] == ("on" if old == "head" else "off")


def test_stages_that_are_fixed_are_not_searched():
    space = chain_space(("adapter", "calibration"))
    started = space.starting_from({f"adapter.{n}": v for n, v in asdict(space_of("adapter").BASELINE).items()}
                                  | {"adapter.adapter": "lora", "adapter.blend": 1.0, "adapter.rank": 8})  # fmt: skip
    assert not [name for name in started.names if space.names[name].targets[0].startswith("adapter")]
    assert started.decode({"beta": 0.5})["adapter"].rank == 8
    assert started.BASELINE["adapter"].adapter == "lora"


def test_a_parameter_that_no_stage_has_is_named():
    with pytest.raises(ValueError, match=r"calibration\.scale: no such parameter; stages are calibration"):
        chain_space(("calibration",)).of_full({"calibration.scale": 50.0})


def test_a_plan_without_words_is_the_spaces_baseline():
    """The defaults of two rooms that may not import each other."""
    for plan, stage in ((Plan(), "adapter"), (HeadPlan(), "head")):
        baseline = asdict(space_of(stage).BASELINE)
        for name, value in asdict(plan).items():
            if name in baseline and name != "adapter":
                assert value == baseline[name], name


def test_a_trial_of_before_reads_histories_as_it_did():
    space = chain_space(("steering", "calibration"))
    new = {**asked(space, 1)[0], "alpha_personal": 1.0, "centred": True}
    old = {name: value for name, value in new.items() if name not in ("front", "centred")}
    for raw, expected in ((new, ("answered", True)), (old, ("others", False))):
        found = space.decode(raw)["steering"]
        assert (found.front, found.centred) == expected


def test_what_nothing_reads_at_a_point_is_idle():
    """So a point without steering is a start of a space that reads histories in one way."""
    space = chain_space(("steering", "calibration"))
    still = space.raw(space.BASELINE.full())
    assert "front" in space.idle(still)
    assert "front" not in space.idle({**still, "alpha_general": 0.5})
    assert "beta" not in space.idle(still)


def test_steps_that_end_below_the_range_are_said_in_our_words(caplog):
    found = chain_space(("calibration",)).overridden("causal", {"beta": {"low": 0, "high": 1, "step": 0.3}})
    assert found["beta"].high == pytest.approx(0.9)
    assert caplog.messages == ["space: steps of 0.3 from 0 end below 1, at 0.9"]
