"""From histories to steered scores."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors import safe_open

from personalization.backbones.cached import CachedScorer
from personalization.data.demo.world import make_world
from personalization.data.prompts import prompt_about
from personalization.data.records import Dataset
from personalization.errors import DataError
from personalization.methods.steering.directions import Pairs, separation, unit
from personalization.methods.steering.edit import SteeringEdit
from personalization.methods.steering.fronts import PAIRS, ROOM
from personalization.methods.steering.learned import Directions, Learned, Reading, Settings, with_threshold
from personalization.scoring.resume import captured_output
from personalization.stages import stage
from personalization.stages import work as works
from personalization.stages.work import Tools, begin, scores_of
from tests.tiny import short_world

SETTINGS = Settings(
    direction="mean_difference",
    general="mean_difference",
    shrink=1.0,
    groups=1,
    edit="additive",
    site="block",
    scope="last",
    alpha_personal=1.0,
    alpha_general=0.2,
    place="start",
    start=0.5,
    count=1,
    gate="none",
    open_share=1.0,
    front="others",
    centred=False,
)
LAYERS = (0, 1)


@pytest.fixture(scope="module")
def world():
    return make_world(7, users=8, questions_per_user=2).dataset


@pytest.fixture(scope="module")
def scorer(tiny_model, tmp_path_factory):
    return CachedScorer(str(tiny_model), tmp_path_factory.mktemp("cache") / "scores")


@pytest.fixture(scope="module")
def tools(scorer):
    return Tools(scorer)


def directions_of(scorer, dataset, front="others"):
    """Of the model without edits."""

    def states(prompts, owners, layers, site):
        return scorer.last_states(prompts, layers, site=site)

    backbone = scorer.backbone
    room = backbone.room([" a label\n"], 0, ROOM)
    return Directions(dataset, Reading(backbone.depth, states, scorer.embeddings, backbone.lengths, room), front)


@pytest.fixture
def steering(scorer, world):
    return directions_of(scorer, world)


@pytest.fixture(scope="module")
def learn(world, tools):
    """A function: what is learned of the world's users."""
    return lambda settings: stage("steering").learn(settings, begin(world, tools, "tune"), tools)


def steered(dataset, settings, learned, tools, of=None):
    """(scores, the edit) of questions that are steered so."""
    work = stage("steering").act(settings, learned, begin(dataset, tools, of), tools)
    return scores_of(work, tools), work.edits[-1]


def plain(dataset, tools):
    return scores_of(begin(dataset, tools), tools)


def only(world: Dataset, *questions) -> Dataset:
    return Dataset(world.task, world.labels, questions)


def without_history(world: Dataset, user: str) -> Dataset:
    return only(world, *(replace(q, history=()) if q.user_id == user else q for q in world.questions))


def test_every_user_has_pairs_of_the_latest_items_at_every_layer(steering, world):
    pairs = steering.pairs("block", LAYERS)
    latest = {tuple(item.id for item in q.history[-count:]) for q in world.questions for count in range(2, PAIRS + 1)}
    assert {tuple(item.id for item in items) for items, _ in pairs} <= latest
    assert all(2 <= len(items) <= PAIRS for items, _ in pairs)
    for (recent, _), layers in pairs.items():
        assert len(layers) == 2
        assert all(pairs.personal.shape == (len(recent), 32) for pairs in layers)
        assert not np.allclose(layers[1].personal, layers[1].neutral)


def test_pairs_of_one_layer_are_those_of_all(steering, scorer, world):
    whole, one = steering.pairs("block", LAYERS), directions_of(scorer, world).pairs("block", (1,))
    for recent, (pairs,) in one.items():
        assert np.abs(pairs.personal - whole[recent][1].personal).max() <= 1e-5
        assert np.abs(pairs.neutral - whole[recent][1].neutral).max() <= 1e-5
    assert all(steering.pairs("block", (1,))[recent] == [whole[recent][1]] for recent in whole)


def test_a_user_without_history_is_not_steered_and_the_others_are(learn, tools, world):
    user = world.questions[0].user_id
    unmoved = plain(world, tools)
    lacking, edit = steered(without_history(world, user), SETTINGS, learn(SETTINGS), tools)
    own = np.array([q.user_id == user for q in world.questions])
    assert edit.touched.tolist() == (~own).tolist()
    assert np.abs(lacking[own] - unmoved[own]).max() <= 1e-5
    assert (np.abs(lacking[~own] - unmoved[~own]).max(axis=1) > 1e-4).all()


def test_what_is_not_steered_has_the_bits_of_the_models_own_scores(tools, world):
    work = begin(without_history(world, world.questions[0].user_id), tools, "lacking")
    learned = stage("steering").learn(SETTINGS, work, tools)
    found = stage("steering").act(SETTINGS, learned, work, tools)
    assert 0 < found.touched.mean() < 1
    assert (scores_of(found, tools)[~found.touched] == scores_of(work, tools)[~found.touched]).all()


def test_a_question_is_steered_by_its_own_history_whatever_else_is_asked(learn, tools, world):
    learned = learn(SETTINGS)
    first, second = world.questions[:2]
    assert first.user_id == second.user_id
    alone = steered(only(world, first), SETTINGS, learned, tools)[0][0]
    for history in ((), second.history[:3], second.history):
        both = only(world, first, replace(second, history=history))
        assert np.abs(steered(both, SETTINGS, learned, tools)[0][0] - alone).max() <= 1e-5


def test_an_item_that_is_the_question_itself_tells_nothing(learn, tools, world):
    question = world.questions[0]
    same = replace(question.history[0], text=question.text.rsplit(": ", 1)[-1], label=world.labels[3])
    told = [
        steered(only(world, replace(question, history=history)), SETTINGS, learn(SETTINGS), tools)[0]
        for history in (question.history, (*question.history, same))
    ]
    assert (told[0] == told[1]).all()


def test_one_item_is_no_direction_of_ones_own(learn, scorer, tools, world):
    settings = replace(SETTINGS, groups=2)
    learned = learn(settings)
    bare = only(world, *(replace(q, history=q.history[:1]) for q in world.questions))
    few = directions_of(scorer, bare)
    assert not few.paired
    scores, edit = steered(bare, settings, learned, tools)
    assert edit.touched.all()
    groups = few._groups(learned.clusters, list(few.histories))
    assert np.allclose(few.vectors(settings, learned).personal, unit(learned.pooled)[groups], atol=1e-6)
    general = steered(world, replace(settings, alpha_personal=0.0), learned, tools)[0]
    assert (np.abs(scores - general) > 1e-4).any()


@pytest.mark.parametrize("share", [0.25, 0.5, 1.0])
def test_the_cosine_gate_opens_for_the_share_that_agrees_most(learn, tools, world, share):
    settings = replace(SETTINGS, gate="cosine", open_share=share)
    learned = learn(settings)
    moved, everyone = (steered(world, some, learned, tools)[1].firings.tokens for some in (settings, SETTINGS))
    assert moved / everyone == pytest.approx(share, abs=0.05)


def test_a_threshold_is_the_quantile_of_the_tune_questions(steering):
    found = with_threshold(steering.learn(SETTINGS), np.arange(101) / 100, 0.25)
    assert found.threshold == pytest.approx(0.75, abs=2e-5)
    assert found.threshold < 0.75


def test_the_product_gate_looks_at_the_user_alone(learn, tools, scorer, world):
    settings = replace(SETTINGS, gate="product", alpha_general=1.0)
    learned = learn(settings)
    _, edit = steered(world, settings, learned, tools)
    directions = directions_of(scorer, world)
    vectors, (users, _) = directions.vectors(settings, learned), directions.users()
    products = vectors.personal[:, 0] @ vectors.general[0]
    assert edit.touched.tolist() == (products >= 0.022)[users].tolist()


def test_the_edits_length_is_alpha_times_the_norm_of_the_states(learn, tools, world):
    settings = replace(SETTINGS, alpha_general=0.0, alpha_personal=0.7)
    _, edit = steered(world, settings, learn(settings), tools)
    assert edit.firings.mean_relative_edit == pytest.approx(0.7, rel=0.25)


def test_what_was_learned_survives_a_folder(learn, tools, world, tmp_path):
    for settings in (SETTINGS, replace(SETTINGS, groups=2, gate="cosine", open_share=0.5)):
        learned = learn(settings)
        again = Learned.load(json.loads(json.dumps(learned.save(tmp_path))), tmp_path)
        expected = steered(world, settings, learned, tools)[0]
        assert (steered(world, settings, again, tools)[0] == expected).all()


@pytest.mark.parametrize("blocks", [2, 5])
def test_blocks_of_users_give_the_same_table(learn, scorer, tools, world, blocks, monkeypatch):
    settings = replace(SETTINGS, gate="cosine", open_share=0.5)
    learned = learn(settings)
    whole, edit = steered(world, settings, learned, tools)
    monkeypatch.setattr(works, "BLOCKS", blocks)
    parts = begin(world, tools, f"in {blocks}").blocks
    assert len(parts) == blocks
    if blocks == 2:
        assert all(len({world.questions[i].user_id for i in rows}) == 4 for _, rows in parts)
    found, of_blocks = steered(world, settings, learned, tools, f"in {blocks}")
    assert np.abs(found - whole).max() <= 1e-5
    assert (of_blocks.touched == edit.touched).all()
    assert of_blocks.firings.tokens == edit.firings.tokens


@pytest.mark.slow
def test_a_batch_of_50_users_is_one_question_at_a_time(scorer, tools):
    world = short_world(8, users=50, questions_per_user=2)
    learned = stage("steering").learn(SETTINGS, begin(world, tools, "50 users"), tools)
    together, edit = steered(world, SETTINGS, learned, tools)
    assert edit.touched.all()
    labels = [world.task.continuation(own) for own in world.labels]
    for row in range(100):
        text = world.task.prompt_of(world.questions[row].text)
        own = SteeringEdit(edit.blocks, edit.vectors, edit.move, edit.users[row : row + 1], np.ones(1))
        alone = scorer.backbone.fixed([text], labels, [own]).table([own])[0]
        assert np.allclose(alone, together[row], rtol=1e-6, atol=1e-5)
    for row in range(0, 100, 20):
        served, _ = steered(only(world, world.questions[row]), SETTINGS, learned, Tools(scorer.unstored()))
        assert np.allclose(served[0], together[row], rtol=1e-6, atol=1e-5)


def test_layers_are_chosen_by_how_well_the_direction_separates(steering, tools, world):
    rng = np.random.default_rng(0)
    axis = np.eye(6)[2] * 4
    sides = [(rng.normal(size=(8, 6)), rng.normal(size=(8, 6))) for _ in range(20)]
    planted = {i: [Pairs(p, n), Pairs(p + axis, n), Pairs(n + 1e-9, n)] for i, (p, n) in enumerate(sides)}
    found = separation(planted, "mean_difference")
    assert found.argmax() == 1
    assert found[1] > 0.95
    assert abs(found[0] - 0.5) < 0.1
    assert found[2] == pytest.approx(0.5, abs=0.05)
    steering._separations["block", "mean_difference"] = np.array([0.6, 0.9])
    for count, layers in ((1, (1,)), (2, (0, 1)), (8, (0, 1))):
        settings = replace(SETTINGS, place="auto", count=count)
        assert steering.learn(settings).layers == layers
    _, edit = steered(world, settings, steering.learn(settings), tools)
    assert edit.firings.calls.keys() == {0, 1}


def test_histories_too_short_to_judge_give_no_preference():
    few = {0: [Pairs(np.ones((3, 2)), np.zeros((3, 2)))] * 4}
    assert separation(few, "svd").tolist() == [0.5] * 4


def test_layers_may_be_listed(steering):
    settings = replace(SETTINGS, place="1,0,1")
    assert steering.learn(settings).layers == (0, 1)
    with pytest.raises(DataError, match="place: 0,7 names layer 7; the model has 0 to 1"):
        steering.learn(replace(SETTINGS, place="0,7"))


def test_a_vector_set_says_what_it_was_found_by(steering, scorer, tools, world, tmp_path):
    settings, name = replace(SETTINGS, shrink=3.0), tmp_path / "vectors.safetensors"
    below = begin(world, tools, "tune")
    learned = stage("steering").learn(settings, below, tools)
    done = stage("steering").act(settings, learned, below, tools)
    name.write_bytes(stage("steering").facts(settings, learned, below, done, tools).files["vectors.safetensors"]())
    with safe_open(name, framework="numpy") as file:
        told, personal = file.metadata(), file.get_tensor("personal")
    assert (personal == steering.vectors(settings, steering.learn(settings)).personal).all()
    assert json.loads(told["users"]) == [f"{items[0].id} to {items[-1].id}" for items, _ in steering.histories]
    assert told["model"] == scorer.fingerprint
    assert (told["shrink"], told["direction"]) == ("3.0", SETTINGS.direction)


def test_serving_with_a_gate_leaves_no_states_behind(learn, scorer, tools, world, tmp_path, monkeypatch):
    settings = replace(SETTINGS, gate="cosine", open_share=0.5)
    learned = learn(settings)
    some = only(world, *world.questions[::3])
    expected, _ = steered(some, settings, learned, tools)
    before = sorted(scorer.folder.rglob("*"))
    monkeypatch.chdir(tmp_path)
    found, edit = steered(some, settings, learned, Tools(scorer.unstored()))
    assert 0 < edit.touched.mean() < 1
    assert np.abs(found - expected).max() <= 1e-5
    assert sorted(scorer.folder.rglob("*")) == before
    assert not list(tmp_path.rglob("*"))


def test_of_two_items_that_do_not_fit_the_beginnings_are_read(scorer, world):
    long = tuple(replace(item, text=f"{item.text} " * 20) for item in world.questions[0].history[:2])
    asked = replace(world.questions[0], history=long)
    found = directions_of(scorer, Dataset(world.task, world.labels, (asked,)))
    ((items, _),) = found.histories
    assert [whole.text.startswith(item.text) for item, whole in zip(items, long, strict=True)] == [True, True]
    assert np.isfinite(found.pairs("block", LAYERS)[found.paired[0]][0].personal).all()


def test_the_general_direction_may_come_from_ccs(steering):
    learned = steering.learn(replace(SETTINGS, general="ccs"))
    assert np.linalg.norm(learned.general[0]) == pytest.approx(1, abs=1e-5)
    assert not np.allclose(learned.general, steering.learn(SETTINGS).general)


def test_states_of_the_mlp_are_what_its_block_adds_last(steering, scorer, world):
    """In a Llama block the residual that leaves is the one before the MLP and the MLP's output."""
    block, mlp = steering.pairs("block", LAYERS), steering.pairs("mlp", LAYERS)
    model = scorer.backbone.model
    recent = next(iter(block))
    text = prompt_about(world.task, world.questions[steering.histories[recent]], recent[0][0].text)
    heads = scorer.backbone.encoder.heads([text])
    layer = model.model.layers[1]
    with torch.inference_mode(), captured_output(layer.mlp) as added, captured_output(layer) as out:
        model(torch.tensor(heads[0].tolist())[None], use_cache=False)
    assert np.abs(mlp[recent][1].neutral[0] - added[0][0, -1].numpy()).max() <= 1e-4
    assert np.abs(block[recent][1].neutral[0] - out[0][0, -1].numpy()).max() <= 1e-4
    assert np.abs(mlp[recent][1].neutral[0] - block[recent][1].neutral[0]).max() > 0.01


def test_an_edit_of_the_mlp_takes_directions_of_the_mlp(steering, learn, tools, world):
    block, mlp = replace(SETTINGS, alpha_general=0.0), replace(SETTINGS, alpha_general=0.0, site="mlp")
    learned = steering.learn(mlp)
    assert (learned.norms == steering.learn(block).norms).all()
    expected = unit(steering.own("mean_difference", "mlp", learned.layers).mean(axis=0))
    assert np.allclose(unit(learned.pooled[0]), expected, atol=1e-5)
    assert not np.allclose(unit(steering.learn(block).pooled[0]), expected, atol=0.1)
    _, edit = steered(world, mlp, learned, tools)
    assert edit.firings.calls.keys() == {1}
    gated = replace(mlp, gate="cosine", open_share=0.5)
    assert 0.4 <= steered(world, gated, learn(gated), tools)[1].touched.mean() <= 0.6


def test_users_are_shrunk_towards_their_group_and_groups_towards_all(steering, scorer, tools, world, tmp_path):
    grouped = replace(SETTINGS, groups=3, shrink=1e6)
    learned = steering.learn(replace(grouped, shrink=2.0))
    assert learned.pooled.shape == (3, 1, 32)
    groups = steering._groups(learned.clusters, steering.paired)
    own = steering.own("mean_difference", "block", learned.layers)
    for group in range(3):
        mine = own[groups == group]
        expected = (mine.sum(axis=0) + 2.0 * own.mean(axis=0)) / (len(mine) + 2.0)
        assert np.allclose(learned.pooled[group], expected, atol=1e-5)
    strong = steering.vectors(grouped, learned).personal
    assert np.allclose(strong, unit(learned.pooled)[groups], atol=1e-3)
    again = Learned.load(json.loads(json.dumps(learned.save(tmp_path))), tmp_path)
    settings = replace(SETTINGS, groups=3, shrink=2.0)
    served, _ = steered(only(world, world.questions[0]), settings, again, Tools(scorer.unstored()))
    together, _ = steered(world, settings, learned, tools)
    assert np.abs(served[0] - together[0]).max() <= 1e-5
    assert (together != steered(world, SETTINGS, steering.learn(SETTINGS), tools)[0]).any()


def test_tune_users_without_any_history_are_named(scorer, tools, world):
    bare = only(world, *(replace(q, history=()) for q in world.questions))
    with pytest.raises(DataError, match="no tune user has two items; leave steering out of the chain"):
        stage("steering").learn(SETTINGS, begin(bare, tools), tools)


def test_states_lie_inside_the_folder_that_was_given(learn, scorer, tools, world):
    steered(world, SETTINGS, learn(SETTINGS), tools)
    assert list((scorer.folder / "states").glob("*.states"))
    assert [path.name for path in scorer.folder.parent.iterdir()] == ["scores"]


def test_directions_are_of_the_model_as_the_stages_below_leave_it(scorer, tools, world):
    below = begin(world, tools, "tune")
    learned = stage("steering").learn(SETTINGS, below, tools)
    moved = stage("steering").act(SETTINGS, learned, replace(below, of=None), tools)
    again = stage("steering").learn(replace(SETTINGS, alpha_general=0.0), moved, tools)
    assert again.layers == learned.layers
    assert np.abs(again.norms - learned.norms).max() > 0.01
