"""Histories read in one pass: the states are those of each prompt alone, and the tokens are those of the history."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from personalization.backbones.cached import CachedScorer
from personalization.backbones.causal import CausalBackbone
from personalization.data.demo.world import INSTRUCTION, make_world
from personalization.data.prompts import prompt_about
from personalization.data.records import Dataset
from personalization.methods.steering.directions import likeness, unit
from personalization.methods.steering.fronts import (
    FRONTS,
    LONGEST,
    PAIRS,
    neutral_prompts,
    newest_that_fit,
    personal_prompts,
    read_items,
    segments,
)
from personalization.methods.steering.learned import Directions, Learned, Reading
from personalization.scoring.packed import Packed
from personalization.scoring.resume import captured_output
from personalization.stages import chain, stage
from personalization.stages.steering import _directions
from personalization.stages.work import Tools, begin, states_of
from tests.personalization.methods.steering.test_learned import SETTINGS, only
from tests.personalization.stages.chains import ACTIVE, growing, params_of
from tests.tiny import make_model, make_tokenizer

LAYERS = (0, 1)
ANSWERED = replace(SETTINGS, front="answered")


@pytest.fixture(scope="module")
def long_model():
    """A model whose context takes whole histories."""
    model = make_model("llama", times=3.0)
    model.config.max_position_embeddings = 4096
    return CausalBackbone(model, make_tokenizer(bos=True))


@pytest.fixture(scope="module")
def scorer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("calm")
    make_model("llama", times=3.0).save_pretrained(folder)
    make_tokenizer(bos=True).save_pretrained(folder)
    return CachedScorer(str(folder), None)


@pytest.fixture(scope="module")
def world():
    return make_world(7, users=6, questions_per_user=1).dataset


def directions_of(backbone, dataset, front):
    def states(prompts, owners, layers, site):
        return backbone.last_states(prompts, layers, site=site)

    room = backbone.room([" comedy\n"], 0, 1920)
    return Directions(dataset, Reading(backbone.depth, states, None, backbone.lengths, room), front)


def state_alone(backbone, text):
    """What leaves both blocks at the last token of one prompt, by the model's own forward pass, [L, d]."""
    first, second = backbone.layers
    ids = torch.tensor(backbone.encoder.heads([text])[0].tolist())[None]
    with torch.inference_mode(), captured_output(first) as low, captured_output(second) as high:
        backbone.model(ids, use_cache=False)
    return np.stack([low[0][0, -1].numpy(), high[0][0, -1].numpy()])


def answered_by_hand(items, i):
    earlier = "".join(f"{item.text}\nanswer: {item.label}\ndescription: " for item in items[:i])
    return INSTRUCTION + earlier + items[i].text + "\nanswer:"


def stated_by_hand(items, i, task):
    return task.history_of(items[:i]) + INSTRUCTION + items[i].text + "\nanswer:"


@pytest.mark.parametrize("front", ["answered", "stated"])
def test_states_of_one_pass_are_those_of_a_prompt_an_item(long_model, world, front):
    directions = directions_of(long_model, world, front)
    pairs = directions.pairs("block", LAYERS)
    assert len(pairs) == 6
    assert max(len(items) for items, _ in pairs) <= LONGEST
    for (items, _), layers in pairs.items():
        count = read_items(front, len(items))
        for place in (0, count - 1):
            i = len(items) - count + place
            text = answered_by_hand(items, i) if front == "answered" else stated_by_hand(items, i, world.task)
            expected = state_alone(long_model, text)
            alone = state_alone(long_model, INSTRUCTION + items[i].text + "\nanswer:")
            for layer in LAYERS:
                assert np.abs(layers[layer].personal[place] - expected[layer]).max() <= 1e-4
                assert np.abs(layers[layer].neutral[place] - alone[layer]).max() <= 1e-4


def test_a_history_is_run_once(long_model, world, monkeypatch):
    tokens, run = [], Packed._forward

    def counting(self, layout, *rest):
        tokens.append(int((layout.branches >= 0).sum()))
        return run(self, layout, *rest)

    directions = directions_of(long_model, world, "answered")
    long_model.last_states([answered_by_hand(world.questions[0].history, 3)] * 2, LAYERS)  # routes are tried before
    monkeypatch.setattr(long_model.router, "_agrees", lambda *_: True)
    monkeypatch.setattr(Packed, "_forward", counting)
    directions.pairs("block", LAYERS)
    once = sum(
        long_model.lengths(
            "".join(segments("answered", world.task, world.questions[row], items))
            for (items, _), row in directions.histories.items()
        )
    )
    assert sum(tokens) <= 1.3 * once


def test_a_tokenizer_that_merges_over_a_border_changes_no_state(long_model, world):
    """The label and what follows it may become one token: prompts are tokenised whole."""
    odd = [replace(item, label="com", text="edy" + item.text) for item in world.questions[0].history[:6]]
    dataset = only(world, replace(world.questions[0], history=tuple(odd)))
    ((_, layers),) = directions_of(long_model, dataset, "answered").pairs("block", LAYERS).items()
    expected = state_alone(long_model, answered_by_hand(odd, 5))
    assert np.abs(layers[1].personal[-1] - expected[1]).max() <= 1e-4


def test_of_how_many_items_states_are_read():
    assert [read_items("answered", n) for n in (0, 1, 2, 3, 6, 9, 24, 32)] == [0, 0, 1, 2, 2, 3, PAIRS, PAIRS]
    assert [read_items("others", n) for n in (0, 1, 2, 8)] == [0, 0, 2, 8]


def test_what_stands_in_front_of_an_item(world):
    question, items = world.questions[0], world.questions[0].history[:7]
    for front in FRONTS:
        personal = personal_prompts(front, world.task, question, items)
        neutral = neutral_prompts(front, world.task, question, items)
        read = items[-read_items(front, 7) :]
        assert neutral == [prompt_about(world.task, question, item.text) for item in read]
        assert all(text.endswith(item.text + "\nanswer:") for text, item in zip(personal, read, strict=True))
        for text, item in zip(personal, read, strict=True):
            before = items[: items.index(item)]
            later = [other for other in items if other not in before and other is not item]
            assert all(other.text in text for other in before)
            assert all((other.text in text) == (front == "others") for other in later)


def test_items_without_a_label_are_stated(world):
    question = world.questions[0]
    items = (*question.history[:4], replace(question.history[4], label=None))
    given = (world.task, question, items)
    assert personal_prompts("answered", *given) == personal_prompts("stated", *given)


def test_an_instruction_that_is_not_in_front_comes_with_each_item(world):
    question = replace(world.questions[0], text="no form at all")
    first, second = question.history[:2]
    (text,) = personal_prompts("answered", world.task, question, (first, second))
    assert text == f"{first.text}\nanswer: {first.label}\n{second.text}\nanswer:"


def test_the_newest_items_that_fit_are_kept():
    assert newest_that_fit([10, 5, 5, 5, 5], 30) == 4
    assert newest_that_fit([10, 5, 5, 5, 5], 29) == 3
    assert newest_that_fit([10, 50, 50, 50], 20) == 2


def test_a_history_never_exceeds_the_models_context(scorer, world):
    """256 tokens: of histories of 8 items and more, the newest are read, whole."""
    backbone = scorer.backbone
    directions = directions_of(backbone, world, "answered")
    before = backbone.truncated
    pairs = directions.pairs("block", LAYERS)
    assert backbone.truncated == before
    assert directions.cut == len(world.questions)
    for (items, _), layers in pairs.items():
        assert 2 <= len(items) < 8
        expected = state_alone(backbone, answered_by_hand(items, len(items) - 1))
        assert np.abs(layers[1].personal[-1] - expected[1]).max() <= 1e-4


def test_what_is_cut_is_said(scorer, world):
    tools = Tools(scorer)
    for dataset, said in ((world, True), (Dataset(world.task, world.labels, _short(world)), False)):
        work = begin(dataset, tools, f"cut {said}")
        learned = stage("steering").learn(ANSWERED, work, tools)
        done = stage("steering").act(ANSWERED, learned, work, tools)
        remarks = stage("steering").facts(ANSWERED, learned, work, done, tools).remarks
        assert any("are read from their newest items" in remark for remark in remarks) == said


def _short(world):
    return tuple(replace(q, history=q.history[:2]) for q in world.questions)


@pytest.mark.parametrize("adapter", [ACTIVE["adapter"][2], ACTIVE["adapter"][3]], ids=["lora", "prefix"])
def test_under_an_adapter_states_are_those_of_a_prompt_at_a_time(scorer, tmp_path, adapter):
    dataset, tools = growing(4, 4, 2), Tools(scorer, folder=tmp_path)
    params = params_of(("adapter", "calibration"), adapter)
    fitted = chain.fit(params, begin(dataset, tools, "tune"), tools)
    work = stage("adapter").act(params["adapter"], fitted.learned["adapter"], begin(dataset, tools), tools)
    assert work.touched.any()
    directions = _directions(work, tools, "answered")
    pairs = directions.pairs("block", LAYERS)
    plain = _directions(begin(dataset, tools), tools, "answered").pairs("block", LAYERS)
    for recent, layers in list(pairs.items())[::3]:
        items, row = recent[0], directions.histories[recent]
        text = answered_by_hand(items, len(items) - 1)
        alone = states_of([text], np.array([row]), work, tools, LAYERS)[0]
        assert np.abs(layers[1].personal[-1] - alone[1]).max() <= 1e-4
        assert np.abs(layers[1].personal[-1] - plain[recent][1].personal[-1]).max() > 1e-2


@pytest.mark.parametrize("direction", ["mean_difference", "svd", "preference"])
def test_centred_directions_lack_what_users_have_in_common(scorer, world, tmp_path, direction):
    settings = replace(ANSWERED, direction=direction, centred=True)
    directions = directions_of(scorer.backbone, world, "answered")
    learned = directions.learn(settings)
    plain = directions.own(direction, "block", learned.layers)
    found = directions.own(direction, "block", learned.layers, learned.commons)
    if direction != "svd":
        assert np.abs(found.mean(axis=0)).max() <= 1e-5
        assert np.allclose(found, plain - plain.mean(axis=0), atol=1e-5)
        assert (learned.pooled == 0).all()
    assert likeness(found, learned.general)[0] < likeness(plain, learned.general)[0]
    again = Learned.load(learned.save(tmp_path), tmp_path)
    assert (again.common == learned.common).all()
    vectors = directions.vectors(settings, learned).personal
    assert (directions.vectors(settings, again).personal == vectors).all()
    uncentred = replace(settings, centred=False)
    assert not np.allclose(vectors, directions.vectors(uncentred, directions.learn(uncentred)).personal, atol=0.1)


def test_what_was_saved_without_a_common_part_is_not_centred(scorer, world, tmp_path):
    learned = directions_of(scorer.backbone, world, "answered").learn(ANSWERED)
    assert "common" not in learned.save(tmp_path)
    assert Learned.load(learned.save(tmp_path), tmp_path).commons is None


def test_one_item_tells_nothing_where_what_is_common_is_taken_out(scorer, world):
    settings = replace(ANSWERED, centred=True)
    learned = directions_of(scorer.backbone, world, "answered").learn(settings)
    bare = only(world, *(replace(q, history=q.history[:1]) for q in world.questions))
    assert (directions_of(scorer.backbone, bare, "answered").vectors(settings, learned).personal == 0).all()


def test_likeness_is_the_mean_cosine():
    own = np.random.default_rng(0).normal(size=(5, 2, 8)).astype(np.float32)
    general = own.mean(axis=0)
    u, w = unit(own), unit(general)
    off = ~np.eye(5, dtype=bool)
    expected = np.mean([(u[:, layer] @ u[:, layer].T)[off].mean() for layer in (0, 1)])
    between, toward = likeness(own, general)
    assert between == pytest.approx(expected, abs=1e-6)
    assert toward == pytest.approx(np.mean([(u[:, layer] @ w[layer]).mean() for layer in (0, 1)]), abs=1e-6)


def test_facts_say_how_alike_users_are(scorer, world):
    tools = Tools(scorer)
    work = begin(world, tools, "alike")
    learned = stage("steering").learn(ANSWERED, work, tools)
    done = stage("steering").act(ANSWERED, learned, work, tools)
    metrics = stage("steering").facts(ANSWERED, learned, work, done, tools).metrics
    assert -1 <= metrics["steering_cosine_between_users_centred"] < metrics["steering_cosine_between_users"] <= 1
    assert metrics["steering_cosine_with_general_centred"] < metrics["steering_cosine_with_general"]
