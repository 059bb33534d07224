"""Adapters side by side on one frozen model, against PEFT."""

import hashlib

import numpy as np
import pytest
import torch
from peft import PeftModel

from personalization.backbones.causal import CausalBackbone
from personalization.methods.adapters.edit import AdapterEdit
from personalization.methods.adapters.lora import GroupedLora, LoraShape, adapted_modules, load_lora
from personalization.scoring.edits import Shelf
from personalization.scoring.resume import decoder_layers
from tests.tiny import make_model, make_tokenizer, of_table

LAYOUTS = ["llama", "qwen3", "mistral", "gemma3", "gpt2", "gpt_neox", "opt", "phi", "falcon"]
PROMPTS = [f"{'a shy baker discovers ' * (1 + i % 4)}a bank heist in paris.\nanswer:" for i in range(9)]
LABELS = [" comedy\n", " dark comedy\n", " 1\n", " 10\n"]
GROUPS = np.array([0, 1, 2, 0, 1, 2, -1, 1, 0])
USERS = [f"user {group}" for group in GROUPS]


def random_lora(model, first=0, groups=3, targets="all", seed=0):
    lora = GroupedLora(
        model, LoraShape(adapted_modules(model, decoder_layers(model)[first:], targets), 4, 8.0, groups), seed
    )
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in lora.parameters:
            parameter.copy_(torch.randn(parameter.shape, generator=random) * 0.3)
    return lora


def weights(model):
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(name.encode() + tensor.numpy().tobytes())
    return digest.hexdigest()


@pytest.mark.parametrize("architecture", of_table(LAYOUTS, "llama", "gpt2", "opt"))
def test_what_is_saved_is_what_peft_loads(architecture, tmp_path):
    model = make_model(architecture)
    lora = random_lora(model, first=1)
    ids = torch.arange(5, 19).view(2, 7)
    with torch.inference_mode():
        plain = model(ids).logits
        with lora.applied(torch.tensor([2, 2])):
            ours = model(ids).logits
    lora.save(tmp_path / "group-2", 2, "base")
    with torch.inference_mode():
        theirs = PeftModel.from_pretrained(make_model(architecture), str(tmp_path / "group-2")).eval()(ids).logits
    assert (ours - plain).abs().max() > 0.01
    assert (ours - theirs).abs().max() <= 1e-4


def test_a_row_gets_the_adapter_of_its_group_and_none_without_one():
    model = make_model("llama")
    lora = random_lora(model)
    ids = torch.arange(5, 33).view(4, 7)
    with torch.inference_mode():
        with lora.applied(torch.tensor([0, 2, -1, 1])):
            mixed = model(ids).logits
        plain = model(ids).logits
        for row, group in enumerate([0, 2, -1, 1]):
            with lora.applied(torch.tensor([group])):
                assert torch.allclose(mixed[row], model(ids[row : row + 1]).logits[0], atol=1e-5)
    assert torch.allclose(mixed[2], plain[2], atol=1e-6)
    assert not torch.allclose(mixed[0], plain[0], atol=1e-2)


def test_a_new_adapter_changes_nothing_and_begins_as_pefts():
    model = make_model("llama")
    lora = GroupedLora(model, LoraShape(adapted_modules(model, decoder_layers(model), "all"), 4, 8.0, 2))
    ids = torch.arange(5, 12)[None]
    with torch.inference_mode(), lora.applied(torch.tensor([1])):
        adapted = model(ids).logits
    assert torch.allclose(adapted, model(ids).logits, atol=1e-6)
    a = lora.a[next(iter(lora.a))]
    assert torch.equal(a[0], a[1])
    assert a.abs().max() <= a.shape[2] ** -0.5


def test_the_model_is_bit_equal_afterwards_whatever_happens_inside():
    model = make_model("llama")
    ids, before = torch.arange(5, 12)[None], weights(model)
    plain = model(ids).logits
    for targets in ("attention", "mlp", "all"):
        for rank in (1, 4):
            shape = LoraShape(adapted_modules(model, decoder_layers(model)[rank % 2 :], targets), rank, 2.0, 1)
            with GroupedLora(model, shape).applied(torch.tensor([0])):
                model(ids)
            assert torch.equal(model(ids).logits, plain)
    with pytest.raises(ZeroDivisionError), random_lora(model).applied(torch.tensor([0])):
        raise ZeroDivisionError
    assert torch.equal(model(ids).logits, plain)
    assert weights(model) == before
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("architecture", LAYOUTS)
def test_targets_divide_the_linear_maps(architecture):
    model = make_model(architecture)
    attention, rest, every = (
        set(adapted_modules(model, decoder_layers(model), targets)) for targets in ("attention", "mlp", "all")
    )
    assert attention | rest == every
    assert not attention & rest
    assert attention
    assert rest
    assert set(adapted_modules(model, decoder_layers(model)[1:], "all")) < every


def test_saved_groups_are_loaded_side_by_side(tmp_path):
    model = make_model("llama")
    lora = random_lora(model)
    for group in range(3):
        lora.save(tmp_path / str(group), group, "base")
    again = load_lora(model, [tmp_path / str(group) for group in range(3)])
    for path, tensor in lora.a.items():
        assert torch.equal(again.a[path], tensor)
        assert torch.equal(again.b[path], lora.b[path])
    assert (again.shape.rank, again.shape.alpha, again.shape.groups) == (4, 8.0, 3)


@pytest.mark.parametrize("architecture", of_table(LAYOUTS, "llama", "gpt2", "opt"))
@pytest.mark.parametrize("first", [0, 1])
def test_scores_are_those_of_one_prompt_at_a_time(architecture, first, tmp_path):
    backbone = CausalBackbone(make_model(architecture), make_tokenizer(bos=False))
    lora = random_lora(backbone.model, first)
    edit = AdapterEdit(lora, GROUPS, USERS, first - 1)
    rows = backbone.fixed(PROMPTS, LABELS, [edit], Shelf(tmp_path, "x"))
    table = rows.table([edit])
    assert bool(list(tmp_path.glob("*.states"))) == (first == 1)
    for row in range(9):
        own = edit.only(np.array([row]))
        alone = backbone.fixed(PROMPTS[row : row + 1], LABELS, [own]).table([own])
        assert np.abs(alone[0] - table[row]).max() <= 1e-4
    plain = backbone.label_logprobs(PROMPTS, LABELS)
    assert np.abs(table[6] - plain[6]).max() <= 1e-4
    assert np.abs(table[:6] - plain[:6]).max() > 0.01
    assert np.abs(rows.table() - plain).max() <= 1e-4
    assert edit.touched.tolist() == (GROUPS >= 0).tolist()
    assert rows.lengths.tolist() == [len(backbone.tokenizer(label)["input_ids"]) for label in LABELS]


@pytest.mark.parametrize("architecture", of_table(LAYOUTS, "llama", "gpt2", "opt"))
def test_gradients_above_stored_states_are_bit_equal_to_those_of_the_whole_model(architecture, tmp_path):
    """The same batch, once from what left layer 0 before, once with layer 0 run again."""
    backbone = CausalBackbone(make_model(architecture), make_tokenizer(bos=False))
    backbone.model.requires_grad_(False)
    found = []
    for shelf in (Shelf(tmp_path, "x"), None):
        lora = random_lora(backbone.model, 1)
        edit = AdapterEdit(lora, GROUPS, USERS, 0)
        rows = backbone.fixed(PROMPTS, LABELS, [edit], shelf)
        loss = torch.stack([rows.scores(number, [edit]).square().mean() for number in range(rows.batches)]).sum()
        found.append(torch.autograd.grad(loss, lora.parameters))
    assert list(tmp_path.glob("*.states"))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    assert any(gradient.abs().max() > 0 for gradient in found[0])
