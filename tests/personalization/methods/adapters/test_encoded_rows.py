"""Adapters inside a sentence encoder, against the encoder itself and PEFT."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml
from peft import PeftModel
from personalization.methods.adapters.encoded_rows import EncodedRows
from transformers import AutoModel, DebertaV2Config, T5Config

from objectives import load_objective
from personalization.backbones.cached import CachedScorer
from personalization.backbones.encoder import load_encoder
from personalization.data.prompts import item_text
from personalization.data.splits import split_users
from personalization.deployment import Deployment
from personalization.errors import UnavailableError, UsageError
from personalization.methods.adapters.lora import GroupedLora, LoraShape, adapted_modules
from personalization.methods.adapters.trained import Trained
from personalization.methods.adapters.user_adapters import Plan, UserAdapters
from personalization.scoring.resume import decoder_layers
from search_spaces import load_space
from tests.tiny import save_as_encoder, short_world

PLAN = Plan(level="cluster", groups=2, epochs=3, lr=2e-2, start=0.5)


@pytest.fixture(scope="module")
def world():
    return short_world(7, users=16, questions_per_user=2)


@pytest.fixture(scope="module")
def scorer(tiny_encoder, tmp_path_factory):
    return CachedScorer(str(tiny_encoder), tmp_path_factory.mktemp("home") / "scores")


@pytest.fixture(scope="module")
def adapters(scorer):
    return UserAdapters(scorer, scorer.folder.parent / "adapters")


def rows_of(scorer, world, first, groups=None):
    texts = [item_text(world.task, q) for q in world.questions]
    groups = np.zeros(len(texts), dtype=np.int64) if groups is None else groups
    return EncodedRows(scorer.backbone, texts, groups, world.labels, first, scorer.folder / "states", "test")


def random_lora(model, first, groups):
    lora = GroupedLora(model, LoraShape(adapted_modules(model, decoder_layers(model)[first:], "all"), 2, 4.0, groups))
    with torch.no_grad():
        for parameter in lora.sides[1]:
            parameter.normal_(std=0.3, generator=torch.Generator().manual_seed(len(parameter[0])))
    return lora


def test_without_an_adapter_texts_score_as_the_encoder_scores_them(scorer, world):
    texts = [item_text(world.task, q) for q in world.questions]
    expected = scorer.backbone.label_logprobs(texts, world.labels)
    for first in (0, 2):
        assert np.abs(rows_of(scorer, world, first).table(None) - expected).max() <= 1e-4


def test_each_text_has_the_adapter_of_its_user_and_none_where_it_has_none(scorer, world):
    groups = np.arange(len(world)) % 3 - 1
    lora = random_lora(scorer.backbone.model, 1, 2)
    table = rows_of(scorer, world, 1, groups).table(lora)
    plain = rows_of(scorer, world, 1).table(None)
    alone = [rows_of(scorer, world, 1, np.full(len(world), group)).table(lora) for group in (0, 1)]
    for group, expected in ((-1, plain), (0, alone[0]), (1, alone[1])):
        assert np.abs(table - expected)[groups == group].max() <= 1e-4
    assert min(np.abs(one - plain).max() for one in alone) > 0.1
    assert np.abs(alone[0] - alone[1]).max() > 0.1


def test_stored_states_give_the_bits_and_the_gradients_of_a_full_run(scorer, world):
    model = scorer.backbone.model
    stored, full = rows_of(scorer, world, 2), rows_of(scorer, world, 2)
    full.first = 0  # the same adapters, the layers below them run again
    found = []
    for rows in (stored, full):
        lora = random_lora(model, 2, 1)
        scores = rows.scores(0, lora)
        scores.square().mean().backward()
        found.append((scores.detach(), [parameter.grad for parameter in lora.parameters]))
    assert (found[0][0] == found[1][0]).all()
    for a, b in zip(found[0][1], found[1][1], strict=True):
        assert (a == b).all()
        assert a.abs().max() > 0


def test_the_encoder_is_what_it_was_after_a_training(adapters, scorer, world):
    before = {name: tensor.clone() for name, tensor in scorer.backbone.model.state_dict().items()}
    texts = [item_text(world.task, q) for q in world.questions]
    expected = scorer.backbone.one_batch(texts)
    trained = adapters.learn(world, PLAN)
    records = trained.record["records"]
    assert min(record["held_out_loss"] for record in records[1:]) < records[0]["held_out_loss"]
    assert all((before[name] == tensor).all() for name, tensor in scorer.backbone.model.state_dict().items())
    assert (scorer.backbone.one_batch(texts) == expected).all()


@pytest.mark.parametrize("level", ["unified", "cluster", "user"])
def test_peft_loads_what_was_trained_and_answers_the_same(adapters, world, tiny_encoder, level):
    trained = adapters.learn(world, replace(PLAN, level=level, epochs=1))
    table = adapters.scores(world, Trained.from_listed(trained.listed()))
    peer = load_encoder(str(tiny_encoder), device="cpu")
    labels = torch.from_numpy(peer.embeddings(world.labels))
    wrapped = PeftModel.from_pretrained(peer.model, str(trained.folder / "group-0")).eval()
    assert wrapped.active_peft_config.task_type == "FEATURE_EXTRACTION"
    groups = adapters.assigned(world, trained)
    mine = np.flatnonzero(groups == 0).tolist()
    expected = 20.0 * peer.one_batch([item_text(world.task, world.questions[row]) for row in mine]) @ labels.T
    assert np.abs(table[mine] - expected.log_softmax(dim=1).numpy()).max() <= 1e-3


def test_matching_states_is_matching_embeddings(adapters, world):
    plain, matched = (adapters.learn(world, replace(PLAN, epochs=1, match=match)) for match in (0.0, 0.5))
    assert matched.record["records"][0]["loss_match"] > 0
    assert plain.listed()["sha256"] != matched.listed()["sha256"]


def test_texts_without_a_token_have_equal_scores(tiny_encoder, tmp_path):
    backbone = load_encoder(str(tiny_encoder), device="cpu")
    rows = EncodedRows(backbone, ["", ""], np.zeros(2, dtype=np.int64), ["a", "b"], 0, tmp_path, "test")
    assert np.allclose(rows.table(None), -np.log(2))


def test_a_prefix_is_refused(adapters, world):
    with pytest.raises(UsageError, match="a prefix needs a causal model; give adapter: head or lora"):
        adapters.learn(world, replace(PLAN, adapter="prefix"))


@pytest.mark.parametrize("level", ["unified", "cluster", "user"])
def test_a_deployment_answers_as_the_trial_did(scorer, world, level):
    splits = split_users(world)
    objective, base = load_objective("adapter", splits, scorer), load_space("adapter").BASELINE
    lora = {
        "adapter": "lora",
        "level": level,
        "groups": 2,
        "epochs": 1,
        "lr": 2e-2,
        "fit": "exact",
        "prior_mode": "user",
    }
    params = replace(base, **lora, blend=0.7, kappa=5.0, source="batch")
    config = yaml.safe_load(yaml.safe_dump({**objective.deployment(params), "fallback": {}}))
    answers = Deployment(config, scorer).predict(splits.confirm.questions)
    evaluation = objective.evaluate(params, "confirm")
    assert [answer.label for answer in answers] == [world.labels[i] for i in evaluation.predicted]
    plain = objective.evaluate(replace(params, adapter="none"), "confirm")
    assert (evaluation.log_probs != plain.log_probs).any()
    new = [replace(q, user_id=f"new {q.user_id}") for q in splits.confirm.questions]
    found = Deployment(config, scorer).predict(new)
    if level == "user":  # the encoder itself answers them, calibrated as such
        expected = [dict(zip(world.labels, row, strict=True)) for row in plain.log_probs]
    else:
        expected = [answer.log_probs for answer in answers]
    assert all(a.log_probs == pytest.approx(b, abs=1e-4) for a, b in zip(found, expected, strict=True))


def other_encoder(folder, config):
    """A random sentence encoder of another architecture."""
    torch.manual_seed(0)
    save_as_encoder(folder, AutoModel.from_config(config))
    return CachedScorer(str(folder / "encoder"), folder / "scores")


def test_layers_that_hand_on_more_than_states_are_not_left_out(tmp_path, world, caplog):
    """T5's first block makes the position bias of all."""
    small = {"vocab_size": 400, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 3, "num_heads": 4}
    scorer = other_encoder(tmp_path, T5Config(**small, architectures=["T5EncoderModel"]))
    with caplog.at_level("INFO"):
        rows = rows_of(scorer, world, 1)
    assert rows.first == 0
    assert "block 0 hands on more than states" in caplog.text
    lora = random_lora(scorer.backbone.model, 1, 1)
    assert np.abs(rows.table(lora) - rows_of(scorer, world, 0).table(lora)).max() == 0


def test_maps_that_are_shared_by_a_batch_get_no_adapter_for_each_user(tmp_path, world):
    """DeBERTa's attention maps its relative positions by the same weights as its states."""
    small = {"vocab_size": 400, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    places = {"relative_attention": True, "share_att_key": True, "pos_att_type": ["p2c", "c2p"]}
    scorer = other_encoder(tmp_path, DebertaV2Config(**small, **places, intermediate_size=48, position_buckets=8))
    adapters = UserAdapters(scorer, tmp_path / "adapters")
    grouped = replace(PLAN, level="cluster", groups=2, epochs=1)
    with pytest.raises(UnavailableError, match=r"takes 1 rows from a batch of .*; give other targets"):
        adapters.learn(world, grouped)
    assert len(adapters.learn(world, replace(grouped, targets="mlp")).record["records"]) == 2
