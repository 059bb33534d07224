"""Every route against the definition: one candidate at a time, one unpadded row, the model's own logits."""

import inspect
import logging

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import BertConfig, LlamaConfig, MistralConfig, Phi3Config, Qwen3MoeConfig
from transformers.models.auto import AutoModelForCausalLM

from personalization.errors import DataError
from personalization.scoring import packed, routes
from personalization.scoring.packed import Packed
from personalization.scoring.passes import TokenBudget, score_all
from personalization.scoring.plain import PromptOnce, RowPerCandidate
from personalization.scoring.resume import decoder_layers
from personalization.scoring.routes import Router
from tests.tiny import ARCHITECTURES, SIZES, enlarged, make_model, of_table

CONTEXT = 256
EAGER_ONLY = {"gemma2", "mamba"}
IMPLEMENTATIONS = [(a, i) for a in ARCHITECTURES for i in ("sdpa", "eager") if i == "eager" or a not in EAGER_ONLY]
GATE = [("llama", "sdpa"), ("gemma2", "eager"), ("gpt2", "sdpa"), ("falcon-alibi", "eager"), ("mamba", "eager")]
ROUTE = dict.fromkeys(ARCHITECTURES, Packed) | {
    "falcon-alibi": PromptOnce,
    "bloom": PromptOnce,
    "mpt": PromptOnce,
    "gpt_neo": PromptOnce,
    "mamba": RowPerCandidate,
}


def one_at_a_time(model, prompts, candidates):
    """float64 [n, K]."""
    each = [range(k, k + 1) for k in range(len(candidates))]
    return np.stack([row_per_candidate(model, prompt, candidates, each) for prompt in prompts])


def equally_long_together(model, prompts, candidates):
    """float64 [n, K], from rows without padding, too: those of a prompt and candidates of one length go together."""
    lengths = np.array([len(candidate) for candidate in candidates])
    alike = [np.flatnonzero(lengths == length) for length in set(lengths.tolist())]
    return np.stack([row_per_candidate(model, prompt, candidates, alike) for prompt in prompts])


def row_per_candidate(model, prompt, candidates, batches):
    """float64 [K]."""
    out = np.empty(len(candidates))
    for batch in batches:
        given = torch.tensor([candidates[k] for k in batch])
        rows = torch.cat([torch.tensor(prompt).expand(len(given), -1), given[:, :-1]], dim=1)
        with torch.inference_mode():
            steps = model(rows, use_cache=False).logits[:, len(prompt) - 1 :].double().log_softmax(-1)
        out[batch] = steps.gather(2, given[:, :, None]).sum(dim=(1, 2))
    return out


def routed(router, prompts, candidates, tokens=None):
    """(the last route that was chosen, the scores float32 [n, K])."""
    prompts = [np.array(p, dtype=np.int32) for p in prompts]
    budget = TokenBudget()
    if tokens is not None:
        budget.halve(2 * tokens)
    known = np.full((len(prompts), len(candidates)), np.nan, dtype=np.float32)
    for rows, route in router.routes(prompts, candidates):
        part = known[rows]
        score_all(route, part, budget)
        known[rows] = part
    return route, known


@st.composite
def tasks(draw):
    """(prompts, candidates): shared beginnings, equal prompts, lengths up to the context, candidates in candidates."""
    random = np.random.default_rng(draw(st.integers(0, 10_000)))
    candidates: list[list[int]] = []
    for _ in range(draw(st.sampled_from([1, 2, 5, 15, 60]))):
        parent = candidates[random.integers(len(candidates))] if candidates and random.random() < 0.5 else []
        grown = [*parent, *random.integers(0, 400, random.integers(1, 4)).tolist()][-8:]
        if grown not in candidates:
            candidates.append(grown)
    room = CONTEXT - max(map(len, candidates)) + 1
    shared = random.integers(0, 400, room).tolist()
    prompts = []
    for _ in range(draw(st.integers(1, 6))):
        end = draw(st.sampled_from([1, 2, 9, 30, 200, room]))
        start = draw(st.sampled_from([0, 0, end // 2, end - 1]))
        prompts.append([*shared[:start], *random.integers(0, 400, end - start).tolist()])
    return prompts, candidates


@pytest.fixture(scope="module")
def routers():
    return {}


@pytest.mark.parametrize(("architecture", "attention"), of_table(IMPLEMENTATIONS, *GATE))
@settings(max_examples=6, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(task=tasks(), tokens=st.sampled_from([1, 100, 1000, None]))
def test_scores_equal_one_candidate_at_a_time(routers, architecture, attention, task, tokens):
    if (architecture, attention) not in routers:
        model = make_model(architecture)
        if architecture != "mamba":
            model.set_attn_implementation(attention)
        routers[architecture, attention] = Router(model)
    router = routers[architecture, attention]
    prompts, candidates = task
    route, ours = routed(router, prompts, candidates, tokens)
    assert type(route) is ROUTE[architecture]
    reference = equally_long_together(router.model, prompts, candidates)
    assert np.abs(ours - reference).max() <= 1e-4
    winners = ours.argmax(axis=1)
    assert (reference[range(len(prompts)), winners] >= reference.max(axis=1) - 1e-5).all()


@pytest.mark.parametrize("architecture", of_table(["llama", "gpt2", "bloom", "mamba"], "llama", "bloom", "mamba"))
def test_argmax_equals_one_candidate_at_a_time(architecture):
    random = np.random.default_rng(3)
    model = make_model(architecture, seed=1)
    prompts = [random.integers(0, 400, size).tolist() for size in random.integers(1, 60, 10)]
    candidates = [random.integers(0, 400, size).tolist() for size in random.integers(1, 5, 15)]
    _, ours = routed(Router(model), prompts, candidates)
    assert (ours.argmax(axis=1) == one_at_a_time(model, prompts, candidates).argmax(axis=1)).all()


def test_the_log_says_why_a_slower_route_is_taken(caplog):
    with caplog.at_level(logging.INFO):
        routed(Router(make_model("bloom")), [[5, 6, 7]], [[1, 2]])
        routed(Router(make_model("mamba")), [[5, 6, 7]], [[1, 2]])
    assert "no packed rows for bloom: its positions are ALiBi biases" in caplog.text
    assert "no prompts once for mamba: its layers are of kinds linear_attention" in caplog.text
    assert "one row a candidate for mamba" in caplog.text


@pytest.mark.parametrize("architecture", of_table(["llama", "qwen3", "gemma3", "gpt2", "opt"], "llama", "gemma3"))
@pytest.mark.parametrize("loudness", [1.0, 100.0])
def test_rounding_in_16_bits_does_not_cost_a_model_its_fast_route(architecture, loudness):
    """Every block rounds anew in each pass, as kernels for other shapes do; a loud head makes nats of it."""
    model = make_model(architecture).to(torch.bfloat16)
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(loudness)

    def rounds(_, __, states):
        sign = 2 * torch.randint(0, 2, states.shape) - 1
        return states + states * torch.finfo(states.dtype).eps * sign.to(states.dtype)

    router = Router(model)
    for layer in decoder_layers(model):
        layer.register_forward_hook(rounds)
    prompts, candidates = [list(range(5, 150)), [9, 8, 7]], [[1, 2], [3, 4, 5]]
    route, first = routed(router, prompts, candidates)
    assert type(route) is ROUTE[architecture]
    again = routed(router, prompts, candidates)[1]
    assert np.abs(first - again).max() > (0.001 if loudness == 1 else 0.25)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_that_ignores_the_tree_mask_is_found_out(caplog, dtype):
    model = make_model("llama").to(dtype)
    real = model.model.forward
    model.model.forward = lambda *args, attention_mask=None, position_ids=None, **kwargs: real(
        *args,
        attention_mask=None if attention_mask is None or attention_mask.ndim == 4 else attention_mask,
        **kwargs,
    )
    model.model.forward.__signature__ = inspect.signature(real)
    with caplog.at_level(logging.INFO):
        route, ours = routed(Router(model), [[5, 6, 7], [5, 6, 9, 9]], [[1, 2], [3, 4, 5]])
    assert type(route) is PromptOnce
    assert "its scores differ from those of one row a candidate" in caplog.text
    difference = np.abs(ours - one_at_a_time(model, [[5, 6, 7], [5, 6, 9, 9]], [[1, 2], [3, 4, 5]])).max()
    assert difference <= (1e-4 if dtype == torch.float32 else 0.1)


def test_a_head_of_unknown_form_is_left_to_the_model(monkeypatch):
    model = make_model("llama")
    real = model.forward

    def squared(*args, **kwargs):
        out = real(*args, **kwargs)
        out["logits"] = out["logits"] ** 2 / 10
        return out

    model.forward = squared
    router = Router(model)
    assert router.head is None
    route, ours = routed(router, [[5, 6, 7], [8]], [[1, 2], [3]])
    assert type(route) is RowPerCandidate
    assert np.abs(ours - one_at_a_time(model, [[5, 6, 7], [8]], [[1, 2], [3]])).max() <= 1e-4


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_rotary_positions_that_move_with_the_length_are_scored_one_row_at_a_time(kind):
    random = np.random.default_rng(0)
    lengths = [20, 90, 61, 62, 63, 64, 65, 100, 30]
    prompts = [random.integers(0, 400, size).tolist() for size in lengths]
    candidates = [[1], [2, 3], [4, 5, 6]]
    reference = np.concatenate([one_at_a_time(moving(kind), [prompt], candidates) for prompt in prompts])
    model = moving(kind)
    router = Router(model)
    arrays = [np.array(prompt, dtype=np.int32) for prompt in prompts]
    packed_scores = np.full(reference.shape, np.nan, dtype=np.float32)
    score_all(Packed(model, router.head, arrays, candidates), packed_scores, TokenBudget())
    assert np.abs(packed_scores - reference).max() > 0.1
    for _ in range(2):
        route, ours = routed(router, prompts, candidates)
        assert isinstance(route, RowPerCandidate)
        assert np.abs(ours - reference).max() <= 1e-4


def moving(kind):
    """A tiny Phi-3 or Llama whose rotary positions change in rows of 64 tokens and more."""
    torch.manual_seed(0)
    if kind == "dynamic":
        sizes = SIZES | {"max_position_embeddings": 64}
        config = LlamaConfig(**sizes, rope_parameters={"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10_000.0})
    else:
        rope = {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [4.0, 3.0, 2.0, 8.0]}
        rope |= {"rope_theta": 10_000.0, "original_max_position_embeddings": 64, "factor": 4.0}
        config = Phi3Config(**SIZES, original_max_position_embeddings=64, rope_parameters=rope, pad_token_id=0)
    return enlarged(AutoModelForCausalLM.from_config(config).eval())


@pytest.mark.parametrize("config", [MistralConfig, Qwen3MoeConfig])
def test_a_window_that_the_model_does_not_use_as_its_config_says_is_found_out(config, caplog):
    kinds = {"sliding_window": 16, "layer_types": ["full_attention"] * 2}
    torch.manual_seed(0)
    model = enlarged(AutoModelForCausalLM.from_config(config(**SIZES, **kinds, num_key_value_heads=2)).eval())
    prompts = [np.random.default_rng(0).integers(0, 400, size).tolist() for size in (60, 40, 5)]
    with caplog.at_level(logging.INFO):
        _, ours = routed(Router(model), prompts, [[1], [2, 3]])
    assert np.abs(ours - one_at_a_time(model, prompts, [[1], [2, 3]])).max() <= 1e-4


def test_a_model_that_is_not_causal_is_refused():
    config = BertConfig(
        vocab_size=400,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        is_decoder=False,
    )
    with pytest.raises(DataError, match="sees what comes after a token"):
        Router(enlarged(AutoModelForCausalLM.from_config(config).eval()))


def test_a_model_that_chokes_on_a_route_gets_the_next_one(caplog):
    model = make_model("llama")
    real = model.model.forward

    def choking(*args, attention_mask=None, **kwargs):
        if attention_mask is not None and attention_mask.ndim == 4:
            raise ValueError("no such mask")
        return real(*args, attention_mask=attention_mask, **kwargs)

    model.model.forward = choking
    model.model.forward.__signature__ = inspect.signature(real)
    with caplog.at_level(logging.INFO):
        route, _ = routed(Router(model), [[5, 6, 7], [5, 6, 9, 9]], [[1, 2], [3, 4, 5]])
    assert type(route) is PromptOnce
    assert "packed rows for llama: no such mask" in caplog.text


def test_very_many_candidates_are_cut_into_several_trees(monkeypatch):
    monkeypatch.setattr(packed, "MOST_NODES", 20)
    random = np.random.default_rng(0)
    candidates = [random.integers(0, 400, size).tolist() for size in random.integers(1, 8, 60)]
    prompts = [[5, 6, 7], random.integers(0, 400, 30).tolist()]
    model = make_model("llama")
    route, ours = routed(Router(model), prompts, candidates)
    assert len(route.trees) > 5
    assert max(len(tree.tokens) for tree in route.trees) <= 20
    assert np.abs(ours - one_at_a_time(model, prompts, candidates)).max() <= 1e-4


def test_a_label_of_probability_zero_leaves_the_others_alone():
    model = make_model("llama")
    model.lm_head = torch.nn.Linear(32, 400)
    with torch.no_grad():
        model.lm_head.bias[7] = -torch.inf
    with pytest.raises(DataError, match="score -inf in float32"):
        routed(Router(model), [[1, 2, 3]], [[7, 8], [5], [6, 9]])
    _, ours = routed(Router(model), [[1, 2, 3]], [[5], [6, 9]])
    assert np.isfinite(ours).all()


def test_a_damaged_model_gives_an_error_and_no_table():
    model = make_model("llama")
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[0, 0] = torch.nan
    with pytest.raises(DataError, match="score nan in float32; try another dtype"):
        routed(Router(model), [[1, 2, 3]], [[7, 8], [5]])


def test_every_route_in_the_table_is_tried_on_every_model_that_it_takes():
    for architecture in ARCHITECTURES:
        router = Router(make_model(architecture))
        for name, (_, refuses) in routes.ROUTES.items():
            assert refuses(router.model, 200) is not None or router._agrees(name, 200)
