"""What a chain says that it will hold: more of anything never holds less, and a known model fits a known card."""

import json
from dataclasses import asdict

import pytest

from personalization.errors import DataError
from personalization.stages import STAGES, stage
from personalization.stages.chain import holds
from personalization.stages.holdings import Sizes, _shape
from search_spaces import chain_space
from search_spaces.route import arms_of

SIZES = Sizes(
    questions=3000, labels=15, users=600, histories=3000, known=300_000, items=60_000, prompt=700, item=90,
    width=64, depth=2, linear=1100, itemsize=4, trials=40,
)  # fmt: skip
LLAMA_3B = SIZES._replace(width=3072, depth=28, linear=8 * 3072 + 3 * (3072 + 8192), itemsize=2)
WEIGHTS_3B = 2 * 3.2e9


FAMILIES = {
    "llama": {"hidden_size": 8, "num_hidden_layers": 2, "intermediate_size": 20},
    "gpt2": {"n_embd": 8, "n_layer": 2, "n_inner": 20},
    "distilbert": {"dim": 8, "n_layers": 2, "hidden_dim": 20},
    "opt": {"hidden_size": 8, "num_hidden_layers": 2, "ffn_dim": 20},
    "xlm": {"emb_dim": 8, "n_layers": 2},
}


@pytest.mark.parametrize("family", FAMILIES)
def test_sizes_are_read_by_the_names_of_each_family(family, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(FAMILIES[family]))
    inner = 32 if family == "xlm" else 20
    assert _shape(tmp_path) == (8, 2, 8 * 8 + 3 * (8 + inner))


def test_a_config_that_says_no_size_is_named(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "odd"}')
    with pytest.raises(DataError, match="config.json says no width or depth; known are hidden_size"):
        _shape(tmp_path)


def held(chain, sizes, **overrides):
    space = chain_space(chain)
    return holds(chain, space.reachable(space.overridden("causal", overrides)), sizes)


@pytest.mark.parametrize("name", [name for name in STAGES if not stage(name).alone])
def test_more_of_anything_never_holds_less(name):
    chain = tuple(dict.fromkeys((name, "calibration")))
    before = held(chain, SIZES)
    assert min(before) >= 0
    assert before.memory > 0
    for size, value in SIZES._asdict().items():
        after = held(chain, SIZES._replace(**{size: 2 * value}))
        assert all(new >= old for new, old in zip(after, before, strict=True)), size


def test_a_route_holds_what_its_chains_hold():
    chains = [chain_space(("prompt", "calibration")).BASELINE.changed(prompt__k=8), chain_space(("head",)).BASELINE]
    apart = [
        holds(tuple(params), {s: {k: [v] for k, v in asdict(own).items()} for s, own in params.items()}, SIZES)
        for params in chains
    ]
    assert held(("route",), SIZES, arms=arms_of(chains)) == apart[0].plus(apart[1])


def test_a_chain_holds_what_its_stages_do_and_states_for_each_adapter_below():
    both = held(("adapter", "steering", "calibration"), SIZES)
    alone = held(("steering", "calibration"), SIZES)
    assert both.disk > held(("adapter", "calibration"), SIZES).disk + 2 * alone.disk


def test_a_smaller_space_holds_less():
    wide, narrow = held(("prompt", "calibration"), SIZES), held(("prompt", "calibration"), SIZES, k=0)
    assert narrow.memory < wide.memory / 4
    all_layers = held(("steering", "calibration"), LLAMA_3B)
    assert held(("steering", "calibration"), LLAMA_3B, place="start", start=0.5).disk < all_layers.disk


@pytest.mark.parametrize("level", [["unified", "cluster"], "user"])
def test_a_model_of_3b_with_adapters_fits_a_card_of_80_gb(level):
    found = held(("prompt", "adapter", "steering", "calibration"), LLAMA_3B, level=level)
    assert WEIGHTS_3B + found.beside_model < 80e9


def test_ten_times_the_users_need_no_larger_card_but_a_larger_disk():
    few, many = (held(("adapter",), LLAMA_3B._replace(users=n), level="user", adapter="lora") for n in (600, 6000))
    assert many.beside_model == few.beside_model
    assert many.disk > 5 * few.disk
