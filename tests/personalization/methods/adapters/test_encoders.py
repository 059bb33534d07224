"""Adapters inside a sentence encoder, against the encoder itself and PEFT."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import AutoModel, DebertaV2Config, T5Config

from personalization.backbones.cached import CachedScorer
from personalization.backbones.encoder import load_encoder
from personalization.data.records import Dataset
from personalization.data.splits import PARTS, split_users
from personalization.errors import UnavailableError, UsageError
from personalization.methods.adapters.edit import AdapterEdit
from personalization.methods.adapters.lora import GroupedLora, LoraShape, adapted_modules
from personalization.methods.adapters.trained import Trained
from personalization.methods.adapters.user_adapters import Plan, UserAdapters
from personalization.scoring.edits import Shelf
from personalization.scoring.resume import decoder_layers
from personalization.stages import chain, stage
from personalization.stages.work import Tools, begin, scores_of
from search_spaces import chain_space
from tests.tiny import of_table, one_batch, save_as_encoder

PLAN = Plan(level="cluster", groups=2, epochs=3, lr=2e-2, start=0.5)


@pytest.fixture(scope="module")
def scorer(tiny_encoder, tmp_path_factory):
    return CachedScorer(str(tiny_encoder), tmp_path_factory.mktemp("home") / "scores")


def rows_of(scorer, world, shelf=None):
    """The texts of a world's questions."""
    texts = [world.task.item(q.text) for q in world.questions]
    return scorer.backbone.fixed(texts, world.labels, (), shelf)


def edit_of(world, lora, first, groups=None):
    """The edit of a world's questions; by default they all have the first adapter."""
    groups = np.zeros(len(world), dtype=np.int64) if groups is None else groups
    return AdapterEdit(lora, groups, [q.user_id for q in world.questions], first - 1)


def scores(world, trained, scorer):
    """Scores of questions as the stage gives them."""
    tools = Tools(scorer)
    blend = SimpleNamespace(blend=1.0)
    return scores_of(stage("adapter").act(blend, trained, begin(world, tools), tools), tools)


def random_lora(model, first, groups):
    lora = GroupedLora(model, LoraShape(adapted_modules(model, decoder_layers(model)[first:], "all"), 2, 4.0, groups))
    with torch.no_grad():
        for parameter in lora.sides[1]:
            parameter.normal_(std=0.3, generator=torch.Generator().manual_seed(len(parameter[0])))
    return lora


def test_without_an_adapter_texts_score_as_the_encoder_scores_them(scorer, world):
    texts = [world.task.item(q.text) for q in world.questions]
    expected = scorer.backbone.label_logprobs(texts, world.labels)
    assert np.abs(rows_of(scorer, world).table() - expected).max() <= 1e-4
    unlearned = GroupedLora(
        scorer.backbone.model,
        LoraShape(adapted_modules(scorer.backbone.model, scorer.backbone.layers, "all"), 2, 4.0, 1),
    )
    for first in (0, 2):
        edit = edit_of(world, unlearned, first)
        assert np.abs(rows_of(scorer, world, scorer.shelf).table([edit]) - expected).max() <= 1e-4


def test_each_text_has_the_adapter_of_its_user_and_none_where_it_has_none(scorer, world):
    groups = np.arange(len(world)) % 3 - 1
    lora = random_lora(scorer.backbone.model, 1, 2)
    rows = rows_of(scorer, world, scorer.shelf)
    table, plain = rows.table([edit_of(world, lora, 1, groups)]), rows.table()
    alone = [rows.table([edit_of(world, lora, 1, np.full(len(world), group))]) for group in (0, 1)]
    for group, expected in ((-1, plain), (0, alone[0]), (1, alone[1])):
        assert np.abs(table - expected)[groups == group].max() <= 1e-4
    assert min(np.abs(one - plain).max() for one in alone) > 0.1
    assert np.abs(alone[0] - alone[1]).max() > 0.1


def test_stored_states_give_the_bits_and_the_gradients_of_a_full_run(scorer, world):
    model = scorer.backbone.model
    found = []
    for shelf in (scorer.shelf, None):
        lora = random_lora(model, 2, 1)
        scores = rows_of(scorer, world, shelf).scores(0, [edit_of(world, lora, 2)])
        scores.square().mean().backward()
        found.append((scores.detach(), [parameter.grad for parameter in lora.parameters]))
    assert (found[0][0] == found[1][0]).all()
    for a, b in zip(found[0][1], found[1][1], strict=True):
        assert (a == b).all()
        assert a.abs().max() > 0


def test_the_encoder_is_what_it_was_after_a_training(adapters, scorer, world):
    before = {name: tensor.clone() for name, tensor in scorer.backbone.model.state_dict().items()}
    texts = [world.task.item(q.text) for q in world.questions]
    expected = one_batch(scorer.backbone, texts)
    trained = adapters.learn(world, PLAN)
    records = trained.record["records"]
    assert min(record["held_out_loss"] for record in records[1:]) < records[0]["held_out_loss"]
    assert all((before[name] == tensor).all() for name, tensor in scorer.backbone.model.state_dict().items())
    assert (one_batch(scorer.backbone, texts) == expected).all()


@pytest.mark.parametrize("level", of_table(["unified", "cluster", "user"], "cluster"))
def test_peft_loads_what_was_trained_and_answers_the_same(adapters, scorer, world, tiny_encoder, level, tmp_path):
    trained = adapters.learn(world, replace(PLAN, level=level, epochs=1))
    table = scores(world, Trained.load(json.loads(json.dumps(trained.save(tmp_path))), tmp_path), scorer)
    peer = load_encoder(str(tiny_encoder), device="cpu")
    labels = torch.from_numpy(peer.embeddings(world.labels))
    wrapped = PeftModel.from_pretrained(peer.model, str(trained.folder / "group-0")).eval()
    assert wrapped.active_peft_config.task_type == "FEATURE_EXTRACTION"
    groups = trained.assigned(world, scorer.embeddings)
    mine = np.flatnonzero(groups == 0).tolist()
    expected = 20.0 * one_batch(peer, [world.task.item(world.questions[row].text) for row in mine]) @ labels.T
    assert np.abs(table[mine] - expected.log_softmax(dim=1).numpy()).max() <= 1e-3


def test_matching_states_is_matching_embeddings(adapters, world):
    plain, matched = (adapters.learn(world, replace(PLAN, epochs=1, match=match)) for match in (0.0, 0.5))
    assert matched.record["records"][0]["loss_match"] > 0
    assert plain.content != matched.content


def test_texts_without_a_token_have_equal_scores(tiny_encoder):
    backbone = load_encoder(str(tiny_encoder), device="cpu")
    edit = AdapterEdit(random_lora(backbone.model, 1, 1), np.zeros(2, dtype=np.int64), ["u", "v"], 0)
    rows = backbone.fixed(["", ""], ["a", "b"], [edit])
    for edits in ([], [edit]):
        assert np.allclose(rows.table(edits), -np.log(2))


def test_a_prefix_is_refused(adapters, world):
    with pytest.raises(UsageError, match="a prefix needs a causal model; give adapter: lora, or the stage head"):
        adapters.learn(world, replace(PLAN, adapter="prefix"))


@pytest.mark.parametrize("level", of_table(["unified", "cluster", "user"], "user"))
def test_a_deployment_answers_as_the_trial_did(scorer, world, level, tmp_path):
    splits = split_users(world)
    space, tools = chain_space(("adapter", "calibration")), Tools(scorer, folder=scorer.folder.parent / "adapters")
    lora = {"adapter": "lora", "level": level, "groups": 2, "epochs": 1, "lr": 2e-2, "blend": 0.7}
    exact = {"fit": "exact", "prior_mode": "user", "kappa": 5.0}
    given = {f"calibration.{name}": value for name, value in exact.items()}
    everybody = Dataset(world.task, world.labels, tuple(q for name in PARTS for q in splits.part(name).questions))

    def fitted(values):
        params = space.of_full({**given, **values})
        return chain.extended(chain.fit(params, begin(splits.tune, tools, "tune"), tools), everybody, tools)

    def asked(some, dataset, by=tools):
        return chain.answer(some, begin(dataset, by), by).answer.log_probs

    served = fitted({f"adapter.{name}": value for name, value in lora.items()})
    evaluated = chain.answer(served, begin(splits.confirm, tools, "confirm"), tools).answer.log_probs
    loaded = chain.load(json.loads(json.dumps(chain.save(served, tmp_path))), tmp_path)
    answers = asked(loaded, splits.confirm, Tools(scorer.unstored()))
    assert np.abs(answers - evaluated).max() <= 1e-4
    assert (answers.argmax(axis=1) == evaluated.argmax(axis=1)).all()
    plain = asked(fitted({}), splits.confirm)
    assert np.abs(evaluated - plain).max() > 1e-3
    new = Dataset(
        world.task, world.labels, tuple(replace(q, user_id=f"new {q.user_id}") for q in splits.confirm.questions)
    )
    # at level user the encoder itself answers them, calibrated as such
    assert np.abs(asked(loaded, new) - (plain if level == "user" else evaluated)).max() <= 1e-4


def other_encoder(folder, config):
    """A random sentence encoder of another architecture."""
    torch.manual_seed(0)
    save_as_encoder(folder, AutoModel.from_config(config))
    return CachedScorer(str(folder / "encoder"), folder / "scores")


def test_layers_that_hand_on_more_than_states_are_not_left_out(tmp_path, world, caplog):
    """T5's first block makes the position bias of all."""
    small = {"vocab_size": 400, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 3, "num_heads": 4}
    scorer = other_encoder(tmp_path, T5Config(**small, architectures=["T5EncoderModel"]))
    edit = edit_of(world, random_lora(scorer.backbone.model, 1, 1), 1)
    with caplog.at_level("INFO"):
        table = rows_of(scorer, world, Shelf(tmp_path / "states", "t5")).table([edit])
    assert "block 0 hands on more than states" in caplog.text
    assert not list(tmp_path.rglob("*.states"))
    assert np.abs(table - rows_of(scorer, world).table([edit])).max() == 0


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
