"""Contract: what may change a forward pass."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from personalization.backbones.causal import CausalBackbone
from personalization.errors import DataError
from personalization.methods.adapters.edit import AdapterEdit
from personalization.methods.adapters.lora import GroupedLora, LoraShape, adapted_modules
from personalization.methods.adapters.prefix import GroupedPrefix
from personalization.methods.steering.edit import SteeringEdit
from personalization.methods.steering.moves import Move, SteeringVectors
from personalization.scoring.edits import shared
from tests.tiny import make_model, make_tokenizer

PROMPTS = [f"{'a shy baker discovers ' * (1 + i % 3)}a bank heist in paris.\nanswer:" for i in range(7)]
LABELS = [" comedy\n", " dark comedy\n", " 1\n"]
OWNERS = [f"user {i // 2}" for i in range(7)]
ON = np.array([True, True, False, True, False, True, True])


@pytest.fixture(scope="module")
def backbone():
    return CausalBackbone(make_model("llama", times=3.0), make_tokenizer(bos=True))


def lora_of(backbone, groups):
    modules = adapted_modules(backbone.model, backbone.layers[1:], "all")
    lora = GroupedLora(backbone.model, LoraShape(modules, 2, 4.0, groups))
    with torch.no_grad():
        for parameter in lora.sides[1]:
            parameter.normal_(std=0.3, generator=torch.Generator().manual_seed(parameter.shape[1]))
    return lora


def steering(backbone, scope, seed=0):
    random = np.random.default_rng(seed)
    personal = random.normal(size=(2, 1, 32)).astype(np.float32)
    vectors = SteeringVectors((1,), personal, personal[0], np.ones(1, dtype=np.float32))
    return SteeringEdit(backbone.layers, vectors, Move(alpha_personal=0.5), np.arange(7) // 2 % 2, ON * 1.0, scope)


def adapters(backbone, prefix):
    groups = np.where(ON, np.arange(7) // 2 % 2, -1)
    owners = [f"{owner} {on}" for owner, on in zip(OWNERS, ON, strict=True)]
    if not prefix:
        return AdapterEdit(lora_of(backbone, 2), groups, owners, 0, content="lora")
    begun = GroupedPrefix.begun(lora_of(backbone, 1), [5, 6, 7], 2)
    with torch.no_grad():
        begun.values += torch.randn(begun.values.shape, generator=torch.Generator().manual_seed(0)) * 0.3
    return AdapterEdit(begun, groups, owners, -1, 3, "prefix")


EDITS = {
    "steering from the prompts' ends": lambda backbone: steering(backbone, "last"),
    "steering everywhere": lambda backbone: steering(backbone, "all"),
    "lora": lambda backbone: adapters(backbone, prefix=False),
    "prefix": lambda backbone: adapters(backbone, prefix=True),
}


@pytest.fixture(scope="module", params=EDITS)
def edit(request, backbone):
    return EDITS[request.param](backbone)


def table(backbone, prompts, edit):
    """Scores of prompts under an edit, those that cannot stand in one batch apart."""
    out = np.empty((len(prompts), len(LABELS)), dtype=np.float32)
    for rows, part in edit.parts():
        out[rows] = backbone.fixed([prompts[row] for row in rows], LABELS, [part]).table([part])
    return out


def test_prompts_together_are_prompts_alone_in_any_order(backbone, edit):
    together = table(backbone, PROMPTS, edit)
    for rows in ([row] for row in range(7)):
        alone = table(backbone, [PROMPTS[row] for row in rows], edit.only(np.array(rows)))
        assert np.abs(alone - together[rows]).max() <= 1e-4
    order = np.array([6, 2, 0, 5, 1])
    some = table(backbone, [PROMPTS[row] for row in order], edit.only(order))
    assert np.abs(some - together[order]).max() <= 1e-4


def test_what_is_touched_moves_and_the_rest_stays(backbone, edit):
    moved = np.abs(table(backbone, PROMPTS, edit) - backbone.label_logprobs(PROMPTS, LABELS)).max(axis=1)
    assert edit.touched.shape == (7,)
    assert edit.touched.any()
    assert (moved[edit.touched] > 1e-3).all()
    assert (moved[~edit.touched] <= 1e-4).all()
    order = np.array([4, 0])
    assert edit.only(order).touched.tolist() == edit.touched[order].tolist()


def test_nothing_up_to_the_layer_that_is_named_changes(backbone, edit):
    edit = edit.only(np.flatnonzero(ON))
    fixed = backbone.fixed([PROMPTS[row] for row in np.flatnonzero(ON)], LABELS, [edit])
    layers = range(backbone.depth)
    moved = np.abs(fixed.last_states(layers, [edit]) - fixed.last_states(layers)).max(axis=(0, 2))
    first = 0 if edit.prefix else 1
    assert (moved[:first] == 0).all()
    assert (moved[first:] > 0).all()
    assert edit.after == (first if isinstance(edit, SteeringEdit) else first - 1)  # a block's output is moved behind it


def test_a_model_outside_is_what_it_was_bit_for_bit(backbone, edit):
    ids = torch.arange(5, 19).view(2, 7)
    with torch.inference_mode():
        before = backbone.model(ids).logits
        table(backbone, PROMPTS, edit)
        assert torch.equal(backbone.model(ids).logits, before)
    assert not any(module._forward_hooks for module in backbone.model.modules())


def test_a_key_is_that_of_equal_edits_alone(backbone, edit):
    rows = np.arange(7)
    assert edit.only(rows).key == edit.key
    assert edit.only(rows[::-1]).key != edit.key
    if isinstance(edit, SteeringEdit):
        other = [replace(edit, gates=1 - edit.gates), replace(edit, move=Move(alpha_personal=0.6))]
        other += [
            steering(backbone, edit.scope, seed=1),
            replace(edit, scope="all" if edit.scope == "last" else "last"),
        ]
    else:
        other = [replace(edit, content="another"), replace(edit, prefix=edit.prefix + 1)]
    assert edit.key not in {one.key for one in other}


def test_parts_are_all_prompts_once(edit):
    rows = np.concatenate([rows for rows, _ in edit.parts()])
    assert sorted(rows.tolist()) == list(range(7))
    for some, part in edit.parts():
        assert len(part.touched) == len(some)
        assert part.prefix in (0, edit.prefix)


def test_sharing_is_what_all_edits_allow(backbone):
    last, everywhere = steering(backbone, "last"), steering(backbone, "all")
    lora = adapters(backbone, prefix=False)
    assert shared([], 7) == shared([last, last], 7) == "any"
    assert shared([last, everywhere], 7) == shared([lora, everywhere], 7) == "none"
    together = shared([lora, last], 7)
    assert [a == b for a in together for b in together] == [a == b for a in lora.sharing for b in lora.sharing]
    by_parity = replace(lora, groups=np.arange(7) % 2, owners=["one"] * 7)
    assert len(set(shared([lora, by_parity], 7))) == len(set(zip(lora.sharing, by_parity.sharing, strict=True))) == 7
    assert shared([lora.only(np.arange(0))], 0) == "any"


def test_an_unknown_scope_is_refused(backbone):
    with pytest.raises(ValueError, match="scope must be one of all, answer, last, but got 'first'"):
        steering(backbone, "first")


def test_a_block_that_does_not_run_is_an_error(backbone):
    edit = steering(backbone, "last")
    fixed = backbone.fixed(PROMPTS, LABELS, [edit])
    fixed.table([edit])
    assert edit.firings.calls == {1: fixed.batches}
    with pytest.raises(DataError, match=r"the blocks 1 of this model did not run in every batch"):
        edit.ran(fixed.batches)
    assert edit.firings.calls == {1: fixed.batches}
