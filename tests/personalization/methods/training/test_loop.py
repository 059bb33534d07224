"""Training adapters: what is learned, what stops it, and going on after a kill."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors import safe_open

from personalization.backbones.causal import CausalBackbone
from personalization.errors import DataError, UsageError
from personalization.methods.adapters.edit import AdapterEdit
from personalization.methods.adapters.lora import GroupedLora, LoraShape, adapted_modules
from personalization.methods.training.flags import flags
from personalization.methods.training.loop import SCHEDULES, Items, losses, measured, train
from personalization.methods.training.recipe import Recipe
from personalization.scoring.edits import Shelf
from personalization.scoring.fixed import OWN_TOKENS
from tests.tiny import make_model, make_tokenizer, of_table

NOUNS = ["baker", "sailor", "heist", "garden", "robot", "castle"]
LABELS = [" comedy\n", " drama\n", " dark comedy\n"]


class Killed(Exception):
    pass


@pytest.fixture(scope="module")
def backbone():
    return CausalBackbone(make_model("llama"), make_tokenizer(bos=True))


def items(backbone, folder, n=24, group=lambda i: i // 6 % 2, first=1):
    """A prompt's label follows from its noun; in group 1 from the next noun."""
    prompts = [f"a story of a {NOUNS[i % 6]}.\nanswer:" for i in range(n)]
    groups = np.array([group(i) for i in range(n)])
    gold = np.array([(i % 6 + groups[i]) % 3 for i in range(n)])
    edit = AdapterEdit(None, groups, list(map(str, groups)), first - 1)
    return Items(backbone.fixed(prompts, LABELS, [edit], Shelf(folder, "x")), gold, edit)


def fresh(backbone, groups=2, first=1):
    return GroupedLora(
        backbone.model,
        LoraShape(adapted_modules(backbone.model, backbone.layers[first:], "all"), 4, 8.0, groups),
    )


RECIPE = Recipe(epochs=6, lr=2e-2, patience=9)


@pytest.mark.slow
def test_groups_learn_their_own_labels_in_one_pass(backbone, tmp_path):
    data, lora = items(backbone, tmp_path, n=12), fresh(backbone)
    before = measured(data.rows.table(data.under(lora)), data.gold)
    records = train([data], data, lora, Recipe(epochs=60, lr=3e-2, patience=60), tmp_path / "c.safetensors")
    after = measured(data.rows.table(data.under(lora)), data.gold)
    assert after["held_out_accuracy"] > 0.9 > before["held_out_accuracy"] + 0.2
    assert after["held_out_loss"] == pytest.approx(min(record["held_out_loss"] for record in records), abs=1e-6)
    one = fresh(backbone, groups=1)
    mixed = items(backbone, tmp_path, n=12, group=lambda _: 0)
    mixed.gold = data.gold
    train([mixed], mixed, one, Recipe(epochs=60, lr=3e-2, patience=60), tmp_path / "d.safetensors")
    assert measured(mixed.rows.table(mixed.under(one)), data.gold)["held_out_accuracy"] <= 0.5


def test_the_base_is_frozen_inside_and_as_before_afterwards(backbone, tmp_path):
    before = {name: tensor.clone() for name, tensor in backbone.model.state_dict().items()}
    asked = [parameter.requires_grad for parameter in backbone.model.parameters()]
    data = items(backbone, tmp_path)
    train([data], None, fresh(backbone), RECIPE, tmp_path / "c.safetensors")
    assert all(torch.equal(before[name], tensor) for name, tensor in backbone.model.state_dict().items())
    assert [parameter.requires_grad for parameter in backbone.model.parameters()] == asked


@pytest.fixture(scope="module", params=SCHEDULES)
def unbroken(request, backbone, tmp_path_factory):
    """(recipe, items in several batches, adapters after the training, its records)."""
    recipe = Recipe(
        epochs=3, evaluations=2, lr=2e-2, lr_ratio=2.0, schedule=request.param, accumulate=2, dropout=0.2, margin=0.5,
        match=0.2, diversity=0.3, anchor=0.01, patience=9,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("unbroken")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(OWN_TOKENS, "cpu", 150)
        whole, data = fresh(backbone), items(backbone, folder)
    assert len(data.rows.rows) >= 4
    return recipe, data, whole, train([data], data, whole, recipe, folder / "whole.safetensors")


@pytest.mark.parametrize("kill_after", of_table([1, 3, 5], 3))
def test_a_killed_training_ends_bit_equal(backbone, tmp_path, unbroken, kill_after):
    recipe, data, whole, records = unbroken
    assert [record["epoch"] for record in records] == [0.5, 1, 1.5, 2, 2.5, 3]
    seen = []

    def watch(_, records):
        seen.append(len(records))
        if len(records) == kill_after:
            raise Killed

    with pytest.raises(Killed):
        train([data], data, fresh(backbone), recipe, tmp_path / "killed.safetensors", watch)
    again = fresh(backbone)
    go_on = train(
        [data], data, again, recipe, tmp_path / "killed.safetensors", lambda _, records: seen.append(len(records))
    )
    assert go_on == records
    assert seen == [1, 2, 3, 4, 5, 6]
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters, again.parameters, strict=True))


def test_a_checkpoint_says_what_it_is(backbone, tmp_path):
    data, lora = items(backbone, tmp_path), fresh(backbone)
    train([data], data, lora, RECIPE, tmp_path / "c.safetensors")
    with safe_open(tmp_path / "c.safetensors", framework="pt") as file:
        told = json.loads(file.metadata()["training"])
    assert told["trainable"] == lora.trainable < told["total"]
    assert told["epoch"] == len(told["records"]) == 6
    assert told["recipe"]["lr"] == 2e-2


def test_a_checkpoint_of_something_else_is_said_and_not_taken_up(backbone, tmp_path, caplog):
    data = items(backbone, tmp_path)
    other = replace(data, gold=(data.gold + 1) % 3)
    turned = replace(data, edit=replace(data.edit, groups=1 - data.edit.groups))
    lower = items(backbone, tmp_path, first=0)
    short = Recipe(epochs=2, lr=1e-2)
    now = [(data, short, 1), (other, short, 1), (turned, short, 1), (lower, short, 0)]
    for number, (items_now, recipe, first) in enumerate(now):
        before = RECIPE if items_now is data else recipe
        train([data], data, fresh(backbone), before, tmp_path / f"{number}.safetensors")
        caplog.clear()
        found, expected = fresh(backbone, first=first), fresh(backbone, first=first)
        train([items_now], items_now, found, recipe, tmp_path / f"{number}.safetensors")
        assert "is of another recipe or other items; the training begins anew" in caplog.text
        train([items_now], items_now, expected, recipe, tmp_path / f"{number}-new.safetensors")
        assert all(torch.equal(a, b) for a, b in zip(found.parameters, expected.parameters, strict=True))


def test_patience_ends_a_training_that_no_longer_helps(backbone, tmp_path):
    data = items(backbone, tmp_path)
    contrary = replace(data, gold=(data.gold + 1) % 3)
    records = train(
        [data], contrary, fresh(backbone), Recipe(epochs=20, lr=2e-2, patience=2), tmp_path / "c.safetensors"
    )
    best = min(range(len(records)), key=lambda epoch: records[epoch]["held_out_loss"])
    assert len(records) - 1 - best == 2


def test_losses_are_those_of_a_few_lines():
    scores = torch.tensor([[-1.0, -2.0, -4.0], [-3.0, -2.5, -2.0]])
    gold, lengths = torch.tensor([0, 1]), torch.tensor([2, 3, 2])
    parts = losses(scores, gold, lengths, Recipe(label=1.0, token=2.0, margin=0.5, diversity=3.0))
    p = scores.softmax(1)
    assert parts["label"] == pytest.approx(float(-(p[0, 0].log() + p[1, 1].log()) / 2))
    assert parts["token"] == pytest.approx(2 * (1.0 + 2.5) / 5)
    assert parts["margin"] == pytest.approx(0.5 * (0.0 + 1.5) / 2)
    mean = p.mean(0)
    shortfall = float(np.log(2) + (mean * mean.log()).sum())
    assert parts["diversity"] == pytest.approx(3 * max(0.0, shortfall), abs=1e-6)


def test_batches_that_are_accumulated_make_the_gradient_of_one(backbone, tmp_path, monkeypatch):
    found = {}
    for tokens, accumulate in ((2048, 1), (150, 99)):
        monkeypatch.setitem(OWN_TOKENS, "cpu", tokens)
        data, lora = items(backbone, tmp_path), fresh(backbone)
        recipe = Recipe(epochs=1, lr=1e-2, accumulate=accumulate, match=0.5, clip=1e9)
        (record,) = train([data], None, lora, recipe, tmp_path / f"{tokens}.safetensors")
        found[len(data.rows.rows)] = (record["loss"], torch.cat([p.grad.flatten() for p in lora.parameters]))
    (one, several), (whole, summed) = sorted(found), [found[count] for count in sorted(found)]
    assert one == 1 < several
    assert whole[0] == pytest.approx(summed[0], abs=1e-5)
    assert whole[1].abs().max() > 1e-3
    assert torch.allclose(whole[1], summed[1], atol=1e-5)


def test_b_learns_at_its_own_rate(backbone, tmp_path):
    data, moved = items(backbone, tmp_path), {}
    for ratio in (1.0, 8.0):
        lora = fresh(backbone)
        train([data], None, lora, Recipe(epochs=1, lr=1e-3, lr_ratio=ratio), tmp_path / f"{ratio}.safetensors")
        moved[ratio] = [max(float(p.detach().abs().max()) for p in side) for side in lora.sides]
    assert moved[8.0][1] == pytest.approx(8 * moved[1.0][1], rel=0.05)
    assert moved[8.0][0] == pytest.approx(moved[1.0][0], rel=0.05)


def test_a_plateau_halves_the_rate_after_each_evaluation_that_is_not_the_best(backbone, tmp_path):
    data = items(backbone, tmp_path)
    contrary = replace(data, gold=(data.gold + 1) % 3)
    recipe = Recipe(epochs=10, lr=5e-2, schedule="plateau", patience=99)
    records = train([data], contrary, fresh(backbone), recipe, tmp_path / "c.safetensors")
    rate, best = recipe.lr, float("inf")
    for record in records:
        assert record["lr"] == pytest.approx(rate)
        rate, best = (rate if record["held_out_loss"] < best else rate / 2), min(best, record["held_out_loss"])
    assert records[-1]["lr"] < recipe.lr


def test_a_match_moves_the_prompts_state_to_its_labels_embedding(backbone, tmp_path):
    data, lora = items(backbone, tmp_path, group=lambda _: 0), fresh(backbone, groups=1)
    rows = data.rows
    with torch.inference_mode():
        scores, before = rows.scores_and_cosines(0, data.under(lora))
        assert torch.equal(scores, rows.scores(0, data.under(lora)))
        ids = torch.tensor(backbone.encoder.heads(["a story of a baker.\nanswer:"])[0].tolist())[None]
        state = backbone.model.model(ids, use_cache=False)[0][0, -1].clone()
    label = backbone.tokenizer(LABELS[2], add_special_tokens=False)["input_ids"]
    embedding = backbone.model.lm_head.weight.detach()[label].mean(dim=0)
    mine = rows.members[0].tolist().index(0)
    assert float(before[mine, 2]) == pytest.approx(float(torch.cosine_similarity(state, embedding, dim=0)), abs=1e-5)
    recipe = Recipe(epochs=30, lr=2e-2, label=0.0, match=1.0)
    train([data], None, lora, recipe, tmp_path / "c.safetensors")
    with torch.inference_mode():
        after = rows.scores_and_cosines(0, data.under(lora))[1]
    gold = torch.from_numpy(data.gold[rows.members[0]])
    assert (after.argmax(1) == gold).float().mean() > 0.9 > (before.argmax(1) == gold).float().mean() + 0.2


def test_an_anchor_keeps_adapters_where_they_began(backbone, tmp_path):
    data, moved = items(backbone, tmp_path), []
    for anchor in (0.0, 100.0):
        lora = fresh(backbone)
        began = lora.state()
        train([data], None, lora, Recipe(epochs=3, lr=5e-3, anchor=anchor), tmp_path / f"{anchor}.safetensors")
        moved.append(sum(float((tensor - began[name]).abs().sum()) for name, tensor in lora.state().items()))
    assert moved[1] < 0.5 * moved[0]


def test_a_loss_that_is_not_finite_is_said(backbone, tmp_path):
    data, lora = items(backbone, tmp_path), fresh(backbone)
    with torch.no_grad():
        lora.parameters[0].fill_(torch.nan)
    with pytest.raises(DataError, match="the loss is nan in epoch 1; take a smaller lr"):
        train([data], None, lora, RECIPE, tmp_path / "c.safetensors")


def test_a_recipe_without_a_loss_is_refused(backbone, tmp_path):
    with pytest.raises(UsageError, match="nothing is learned: label, token, margin, match and diversity"):
        train([items(backbone, tmp_path)], None, fresh(backbone), Recipe(label=0.0), tmp_path / "c.safetensors")


@pytest.mark.parametrize(
    ("records", "said"),
    [
        (
            [{"epoch": 0.5, "loss": 1.0, "loss_label": 1.0, "held_out_loss": 1.0, "held_out_top1_share": 0.95}],
            "epoch 0.5: one label takes 95%",
        ),
        (
            [{"epoch": 1, "loss": 1.0, "held_out_loss": 1.0}, {"epoch": 2, "loss": 0.9, "held_out_loss": 1.2}],
            "epoch 2: the held-out loss rises",
        ),
        (
            [{"epoch": 1, "loss": 4.0, "loss_label": 1.0, "loss_margin": 3.0, "held_out_loss": 1.2}],
            "epoch 1: the loss is mostly margin",
        ),
        ([{"epoch": 1, "loss": 0.2, "train_loss": 0.2, "held_out_loss": 1.0}], "it learns its items by heart"),
        ([{"epoch": 1, "loss": 1.0, "loss_label": 0.6, "train_loss": 0.6, "held_out_loss": 1.2}], "by heart"),
        ([{"epoch": 1, "loss": 1.0, "loss_label": 0.1, "train_loss": 1.0, "held_out_loss": 1.0}], ""),
        (
            [{"epoch": i, "loss": 1.0, "held_out_loss": 1.0 + 0.02 * i} for i in range(1, 5)],
            "epoch 4: the held-out loss rises from 1.020 to 1.080",
        ),
        (
            [{"epoch": i, "loss": 1.0, "train_loss": 1.0} for i in range(1, 4)],
            "epoch 3: the training loss does not fall",
        ),
    ],
)
def test_flags_name_the_epoch_and_what_helps(records, said):
    found = flags(records)
    assert len(found) == (said != "")
    assert said in "".join(found)
