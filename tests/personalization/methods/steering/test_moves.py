"""What steering does to hidden states and scores: effects, not calls."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from personalization.backbones.causal import CausalBackbone
from personalization.errors import DataError, UnavailableError
from personalization.methods.steering.directions import DIRECTIONS, Pairs, ccs, personal_directions, shrunk, svd, unit
from personalization.methods.steering.edit import SCOPES, SteeringEdit
from personalization.methods.steering.moves import (
    EDITS,
    EditedTokens,
    Move,
    SteeringVectors,
    cosine_gate,
    moved,
    product_gate,
    steered,
)
from personalization.scoring.edits import Shelf
from personalization.scoring.packed import Packed
from personalization.scoring.resume import SITES, captured_output, decoder_layers, output_of, site_of
from tests.tiny import make_model, make_tokenizer, of_table

LAYOUTS = ["llama", "qwen3", "mistral", "gemma3", "gpt2", "gpt_neox", "opt", "phi", "falcon"]
PROMPTS = [f"{'a shy baker discovers ' * (1 + i % 4)}a bank heist in paris.\nanswer:" for i in range(9)]
LABELS = [" comedy\n", " dark comedy\n", " 1\n", " 10\n"]
USERS = np.arange(9) % 4


def random_vectors(seed=0, layers=(0, 1), users=4, width=32) -> SteeringVectors:
    """Vectors at these of two layers."""
    random, chosen = np.random.default_rng(seed), list(layers)

    def unit(*shape):
        x = random.normal(size=shape)
        return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)

    norms = random.uniform(1, 3, 2).astype(np.float32)
    return SteeringVectors(tuple(layers), unit(users, 2, width)[:, chosen], unit(2, width)[chosen], norms[chosen])


def table(backbone, vectors, move, folder=None, gates=None, scope="last"):
    """(scores, the edit) of the prompts; `folder`: where the pass starts from stored states."""
    gates = np.ones(len(PROMPTS)) if gates is None else gates
    edit = SteeringEdit(backbone.layers, vectors, move, USERS, gates, scope)
    fixed = backbone.fixed(PROMPTS, LABELS, [edit], None if folder is None else Shelf(folder, "tiny"))
    return fixed.table([edit]), edit


def run(model, ids, mask=None):
    """(outputs of every block [L] of [B, T, d], logits)."""
    layers = decoder_layers(model)
    with torch.inference_mode(), captured_output(layers[0]) as first, captured_output(layers[1]) as second:
        positions = None if mask is None else (mask.cumsum(-1) - 1).clamp(min=0)
        logits = model(ids, attention_mask=mask, position_ids=positions, use_cache=False).logits
    return first[0], second[0], logits


TOKENS = EditedTokens(
    width=7,
    rows=np.array([0, 0, 1, 2]),
    columns=np.array([3, 4, 6, 0]),
    users=np.array([1, 1, 3, 0]),
    gates=np.array([1, 1, 0.5, 0], dtype=np.float32),
)


@pytest.mark.parametrize("architecture", LAYOUTS)
def test_only_the_given_tokens_move_and_by_exactly_their_users_vector(architecture):
    model, vectors = make_model(architecture), random_vectors(layers=(1,))
    ids = torch.arange(5, 26).view(3, 7)
    below, plain, logits = run(model, ids)
    move = Move(alpha_personal=0.7, alpha_general=-0.2)
    with steered(decoder_layers(model), vectors, move, TOKENS) as firings:
        same_below, steered_states, steered_logits = run(model, ids)
    assert torch.equal(below, same_below)
    expected = plain.clone()
    for row, column, user, gate in zip(TOKENS.rows, TOKENS.columns, TOKENS.users, TOKENS.gates, strict=True):
        shift = gate * vectors.norms[0] * (0.7 * vectors.personal[user, 0] - 0.2 * vectors.general[0])
        expected[row, column] += torch.from_numpy(shift)
    assert torch.allclose(steered_states, expected, atol=1e-6)
    untouched = torch.ones(3, 7, dtype=torch.bool)
    untouched[TOKENS.rows[:3], TOKENS.columns[:3]] = False
    assert torch.equal(steered_states[untouched], plain[untouched])
    assert torch.equal(steered_logits[untouched], logits[untouched])
    assert not torch.allclose(steered_logits[0, 3], logits[0, 3])
    assert firings.calls == {1: 1}
    assert firings.tokens == 3
    again = run(model, ids)
    assert torch.equal(again[1], plain)
    assert torch.equal(again[2], logits)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_on_either_side_changes_no_edit(side):
    model, vectors, move = make_model("llama"), random_vectors(), Move(alpha_personal=0.5)
    texts = [list(range(5, 12)), [20, 21, 22]]
    padded = [[0] * (7 - len(t)) + t if side == "left" else t + [0] * (7 - len(t)) for t in texts]
    mask = torch.tensor([[int(i != 0) for i in row] for row in padded])
    last = [6, 6] if side == "left" else [6, 2]
    tokens = EditedTokens(7, np.arange(2), np.array(last), np.array([2, 1]), np.ones(2, dtype=np.float32))
    with steered(decoder_layers(model), vectors, move, tokens):
        *_, together = run(model, torch.tensor(padded), mask)
    for row, text in enumerate(texts):
        alone = EditedTokens(
            len(text), np.zeros(1, int), np.array([len(text) - 1]), tokens.users[row : row + 1], np.ones(1, "f4")
        )
        with steered(decoder_layers(model), vectors, move, alone):
            *_, logits = run(model, torch.tensor([text]))
        assert torch.allclose(together[row, last[row]], logits[0, -1], atol=1e-5)


def test_a_gate_of_zero_is_bit_equal_to_no_steering():
    model, vectors = make_model("llama"), random_vectors()
    ids = torch.arange(5, 26).view(3, 7)
    plain = run(model, ids)
    shut = EditedTokens(7, TOKENS.rows, TOKENS.columns, TOKENS.users, np.zeros(4, dtype=np.float32))
    with steered(decoder_layers(model), vectors, Move(alpha_personal=3.0), shut) as firings:
        assert all(torch.equal(a, b) for a, b in zip(run(model, ids), plain, strict=True))
    assert firings.tokens == 0


@pytest.mark.parametrize("where", [0, 1])
def test_an_exception_inside_leaves_the_model_as_it_was(where):
    model, vectors = make_model("llama"), random_vectors()
    ids = torch.arange(5, 26).view(3, 7)
    plain = run(model, ids)
    hooks = [len(layer._forward_hooks) for layer in decoder_layers(model)]

    def fail(*_):
        raise KeyboardInterrupt

    handle = decoder_layers(model)[where].register_forward_hook(fail)
    with (
        pytest.raises(KeyboardInterrupt),
        steered(decoder_layers(model), vectors, Move(alpha_personal=3.0), TOKENS),
    ):
        run(model, ids)
    handle.remove()
    assert [len(layer._forward_hooks) for layer in decoder_layers(model)] == hooks
    assert all(torch.equal(a, b) for a, b in zip(run(model, ids), plain, strict=True))


def test_projection_adds_the_personal_part_and_removes_the_general_one():
    random = np.random.default_rng(0)
    h, u = (torch.from_numpy(random.normal(size=(5, 8)).astype(np.float32)) for _ in range(2))
    u /= u.norm(dim=1, keepdim=True)
    w = torch.eye(8)[0]
    ours = moved(h, u, w, Move("projection", alpha_personal=1.0, alpha_general=1.0), torch.ones(5, 1), 9.0)
    p = h + torch.stack([(a @ b) * b for a, b in zip(h, u, strict=True)])
    assert torch.allclose(ours, p - p[:, :1] * w, atol=1e-6)
    assert torch.allclose(ours @ w, torch.zeros(5), atol=1e-6)


@pytest.fixture(scope="module")
def backbones():
    return {name: CausalBackbone(make_model(name), make_tokenizer(bos=True)) for name in LAYOUTS}


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("kind", EDITS)
@pytest.mark.parametrize("architecture", of_table(LAYOUTS, "llama", "gpt2", "opt"))
def test_resuming_is_bit_equal_to_the_whole_model(backbones, architecture, kind, site, scope, tmp_path):
    backbone, vectors = backbones[architecture], random_vectors(layers=(1,))
    move = Move(kind, site, alpha_personal=0.8, alpha_general=0.3)
    gates = np.array([1, 1, 0, 1, 0.5, 1, 1, 1, 1])
    whole, of_whole = table(backbone, vectors, move, gates=gates, scope=scope)
    resumed, of_resumed = table(backbone, vectors, move, tmp_path, gates, scope)
    assert list(tmp_path.glob("*.states"))
    assert (whole == resumed).all()
    assert of_whole.firings == of_resumed.firings
    plain = backbone.label_logprobs(PROMPTS, LABELS)
    assert np.abs(whole[2] - plain[2]).max() <= 1e-5
    assert np.abs(whole[[0, 1, 3]] - plain[[0, 1, 3]]).max() > 1e-3
    assert not any("forward" in vars(layer) for layer in backbone.layers)
    assert (backbone.fixed(PROMPTS, LABELS, [of_whole]).route.trunk > 0) == (scope != "all")


@pytest.mark.parametrize("scope", SCOPES)
def test_the_tokens_of_a_scope_move_by_the_vector_and_no_others(backbones, scope):
    """In a batch as it is run: below the layer nothing changes, at it the listed tokens move by s a u, no others."""
    backbone, vectors = backbones["llama"], random_vectors(layers=(1,))
    edit = SteeringEdit(backbone.layers, vectors, Move(alpha_personal=0.7), USERS, np.ones(9), scope)
    fixed = backbone.fixed(PROMPTS, LABELS, [edit])
    for number, members in enumerate(fixed.members):
        seen = []
        for edits in ([], [edit]):
            below, at = captured_output(backbone.layers[0]), captured_output(backbone.layers[1])
            with torch.inference_mode(), below as low, at as high:
                fixed.scores(number, edits)
            seen.append((low[-1].numpy(), high[-1].numpy()))
        (low, high), (low_edited, high_edited) = seen
        assert (low == low_edited).all()
        places, expected = fixed.layout(number).places, np.zeros_like(high)
        for prompt, (row, last, *answer) in zip(members, places, strict=True):
            moved_by = vectors.norms[0] * 0.7 * vectors.personal[USERS[prompt], 0]
            columns = {"last": [last, *answer], "answer": answer, "all": fixed.layout(number).branches[row] >= 0}
            expected[row, columns[scope]] = moved_by
        assert (expected != 0).any()
        assert np.abs(high_edited - high - expected).max() <= 1e-5
        assert (high_edited[expected == 0] == high[expected == 0]).all()


@pytest.mark.parametrize("architecture", ["bloom", "mamba"])
def test_a_model_without_packed_rows_is_refused_by_name(architecture):
    backbone = CausalBackbone(make_model(architecture), make_tokenizer(bos=True))
    with pytest.raises(UnavailableError, match=f"packed rows, which {architecture} models cannot take"):
        backbone.fixed(PROMPTS, LABELS)


def test_rows_with_moving_rotary_positions_are_refused():
    model = make_model("llama")
    model.config.rope_parameters = {"rope_type": "dynamic", "factor": 2.0, "original_max_position_embeddings": 40}
    backbone = CausalBackbone(model, make_tokenizer(bos=True))
    with pytest.raises(UnavailableError, match="packed rows, which llama models cannot take"):
        backbone.fixed(PROMPTS, LABELS)


def test_a_question_moves_along_its_own_users_vector_only(backbones):
    first, other = random_vectors(0), random_vectors(1)
    mixed = replace(first, personal=first.personal.copy())
    mixed.personal[2] = other.personal[2]
    before, after = (table(backbones["llama"], found, Move(alpha_personal=0.8))[0] for found in (first, mixed))
    assert (before[USERS != 2] == after[USERS != 2]).all()
    assert (before[USERS == 2] != after[USERS == 2]).any(axis=1).all()


def test_an_edit_that_ends_in_nan_is_an_error(backbones):
    with pytest.raises(DataError, match="a score is not finite under what was done to the model"):
        table(backbones["llama"], random_vectors(layers=(1,)), Move(alpha_personal=float("inf")))


@pytest.mark.parametrize("architecture", LAYOUTS)
def test_states_are_read_at_the_mlp_of_every_layout(backbones, architecture):
    backbone = backbones[architecture]
    if not isinstance(backbone.router.routes(backbone.encoder.heads(PROMPTS), [[0]])[0][1], Packed):
        pytest.skip("states are read from packed rows")
    found = backbone.last_states(PROMPTS[:3], site="mlp")
    for row, head in enumerate(backbone.encoder.heads(PROMPTS[:3])):
        for number, layer in enumerate(decoder_layers(backbone.model)):
            with torch.inference_mode(), captured_output(site_of(layer, "mlp")) as seen:
                backbone.model(torch.tensor(head.tolist())[None], use_cache=False)
            assert np.abs(found[row, number] - seen[0].view(len(head), -1)[-1].numpy()).max() <= 1e-4


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma3"])
def test_states_of_all_layers_are_those_of_each_prompt_alone(backbones, architecture):
    backbone = backbones[architecture]
    ours = backbone.last_states([*PROMPTS, "a shy baker discovers a film"])
    assert ours.shape == (10, 2, 32)
    for row, prompt in enumerate(PROMPTS):
        first, second, _ = run(backbone.model, torch.tensor([backbone.tokenizer(prompt)["input_ids"]]))
        assert np.abs(ours[row, 0] - first[0, -1].numpy()).max() <= 1e-5
        assert np.abs(ours[row, 1] - second[0, -1].numpy()).max() <= 1e-5


def test_an_unknown_layout_says_what_to_give():
    model = make_model("llama")
    with pytest.raises(DataError, match="no module 'model.blocks'; give the path"):
        decoder_layers(model, "model.blocks")
    assert list(decoder_layers(model, "model.layers")) == list(model.model.layers)
    model.model.others = torch.nn.ModuleList([torch.nn.Identity()])
    with pytest.raises(DataError, match="module 'model.others' is no list of the model's 2 blocks"):
        decoder_layers(model, "model.others")
    model.extra = torch.nn.ModuleList([torch.nn.Identity()] * 2)
    with pytest.raises(DataError, match=r"model.layers, extra of its modules could be its 2 blocks; name one"):
        decoder_layers(model)


def planted(seed=0, items=60, width=12):
    """(pairs whose personal side is shifted along a known axis, that axis)."""
    random = np.random.default_rng(seed)
    axis = random.normal(size=width)
    axis /= np.linalg.norm(axis)
    neutral = random.normal(size=(items, width)).astype(np.float32)
    noise = 0.3 * random.normal(size=(items, width))
    return Pairs((neutral + 3 * axis + noise).astype(np.float32), neutral), axis


def test_mean_difference_finds_a_planted_direction():
    pairs, axis = planted()
    found = DIRECTIONS["mean_difference"](pairs)
    assert found @ axis / np.linalg.norm(found) > 0.99


def test_svd_is_the_first_right_singular_vector_and_points_to_the_personal_side():
    pairs, axis = planted()
    found = svd(pairs)
    expected = np.linalg.svd(pairs.personal)[2][0]
    assert abs(found @ expected / np.linalg.norm(found)) == pytest.approx(1, abs=1e-5)
    assert found @ axis > 0


def test_ccs_finds_a_planted_truth_direction():
    random = np.random.default_rng(0)
    axis = np.eye(12)[3]
    truth = random.choice([-1.0, 1.0], 200)[:, None]
    noise = random.normal(size=(2, 200, 12))
    plus = (noise[0] * 0.4 + 3 * truth * axis).astype(np.float32)
    minus = (noise[1] * 0.4 - 3 * truth * axis).astype(np.float32)
    found, loss = ccs(plus, minus)
    assert abs(found @ axis) > 0.9
    assert loss < 0.05


def test_a_user_with_few_items_is_shrunk_towards_all():
    many, axis = planted(0, items=200)
    few, _ = planted(1, items=2)
    own = personal_directions({"m": [many], "f": [few]}, "mean_difference")
    pooled, items = own.mean(axis=0), np.array([200, 2])
    alone, together = (unit(shrunk(own, items, pooled, kappa)) for kappa in (0.0, 20.0))
    toward = pooled[0] / np.linalg.norm(pooled[0])
    assert together[1, 0] @ toward > alone[1, 0] @ toward
    assert np.allclose(np.linalg.norm(together, axis=-1), 1)
    assert together[0, 0] @ axis > 0.95


def test_gates_are_what_their_formulas_say():
    states = np.array([[1.0, 0], [0, 2], [3, 3], [0, 0]])
    directions = np.array([[2.0, 0], [0, -1], [1, 0], [1, 0]])
    assert np.allclose(cosine_gate(states, directions), [1, -1, 2**-0.5, 0])
    p, g = np.array([[0.3, 0.4]]), np.array([0.0, 0.5])
    assert product_gate(p, g) == pytest.approx([0.5 * 0.5 * 0.8])


@pytest.mark.parametrize("architecture", of_table(["llama", "gpt2", "gpt_neox"], "llama"))
@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("kind", EDITS)
def test_a_table_is_that_of_one_prompt_and_label_at_a_time(architecture, scope, site, kind):
    """By hand: one unpadded row a candidate, its own user's vector added to what leaves the site."""
    model, vectors, tokenizer = make_model(architecture), random_vectors(), make_tokenizer(bos=False)
    move = Move(kind, site, alpha_personal=0.6, alpha_general=-0.3)
    ours, _ = table(CausalBackbone(model, tokenizer), vectors, move, scope=scope)
    layers = decoder_layers(model)
    for row in (0, 3, 5):
        u, start = torch.from_numpy(vectors.personal[USERS[row]]), len(tokenizer(PROMPTS[row])["input_ids"])
        for column, label in enumerate(LABELS):
            ids = torch.tensor([tokenizer(PROMPTS[row] + label)["input_ids"]])
            first = {"all": 0, "last": start - 1, "answer": start}[scope]

            def moved_by_hand(_, __, output, layer, first=first, u=u):
                states = (output[0] if isinstance(output, tuple) else output).clone()
                h = states.reshape(-1, states.shape[-1])[first:]
                w, norm = torch.from_numpy(vectors.general[layer]), float(vectors.norms[layer])
                if kind == "additive":
                    h += norm * (0.6 * u[layer] - 0.3 * w)
                else:
                    h += 0.6 * (h @ u[layer])[:, None] * u[layer]
                    h += 0.3 * (h @ w)[:, None] * w
                return (states, *output[1:]) if isinstance(output, tuple) else states

            hooks = [
                site_of(layers[layer], site).register_forward_hook(
                    lambda *given, layer=layer: moved_by_hand(*given, layer)
                )
                for layer in vectors.layers
            ]
            with torch.inference_mode():
                steps = model(ids, use_cache=False).logits[0, start - 1 : -1].log_softmax(dim=-1)
            for hook in hooks:
                hook.remove()
            assert abs(float(steps.gather(1, ids[0, start:, None]).sum()) - ours[row, column]) <= 1e-4


def test_a_pass_that_does_not_come_to_a_block_is_an_error():
    model = make_model("llama")
    seen = output_of(decoder_layers(model)[0], lambda: model(torch.tensor([[5, 6, 7]]), use_cache=False))
    assert torch.equal(seen, run(model, torch.tensor([[5, 6, 7]]))[0])
    with pytest.raises(RuntimeError, match="did not come to its LlamaDecoderLayer"):
        output_of(decoder_layers(model)[0], lambda: None)
