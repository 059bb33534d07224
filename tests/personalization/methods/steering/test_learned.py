"""From histories to steered scores."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from personalization.methods.steering.steered_scorer import SteeredScorer
from personalization.methods.steering.user_steering import HISTORY_ITEMS, Learned, Settings, UserSteering

from personalization.backbones.cached import CachedScorer
from personalization.data.demo.world import make_world
from personalization.data.prompts import continuations, prompt, prompt_about
from personalization.data.records import Dataset
from personalization.errors import DataError
from personalization.methods.steering.directions import Pairs, separation, unit
from personalization.methods.steering.moves import Edit, SteeringVectors
from personalization.scoring.resume import captured_output
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
)


@pytest.fixture(scope="module")
def world():
    return make_world(7, users=12, questions_per_user=2).dataset


@pytest.fixture(scope="module")
def scorer(tiny_model, tmp_path_factory):
    return CachedScorer(str(tiny_model), tmp_path_factory.mktemp("cache") / "scores")


@pytest.fixture
def steering(scorer, world):
    return UserSteering(scorer, world)


def without_history(world: Dataset, user: str) -> Dataset:
    questions = tuple(replace(q, history=()) if q.user_id == user else q for q in world.questions)
    return Dataset(world.task, world.labels, questions)


def test_every_user_has_pairs_of_the_latest_items_at_every_layer(steering, world):
    assert {items for items, _ in steering.pairs("block")} == {q.history[-HISTORY_ITEMS:] for q in world.questions}
    for (recent, _), layers in steering.pairs("block").items():
        assert len(layers) == 2
        assert all(pairs.personal.shape == (len(recent), 32) for pairs in layers)
        assert not np.allclose(layers[1].personal, layers[1].neutral)


def test_a_user_without_history_is_not_steered_and_the_others_are(steering, scorer, world):
    user = world.questions[0].user_id
    learned = steering.learn(SETTINGS)
    plain = steering.scores(replace(SETTINGS, alpha_personal=0.0, alpha_general=0.0), learned).scores
    lacking = UserSteering(scorer, without_history(world, user)).scores(SETTINGS, learned).scores
    own = np.array([q.user_id == user for q in world.questions])
    assert (lacking[own] == plain[own]).all()
    assert (lacking[~own] != plain[~own]).any(axis=1).all()


def test_a_question_is_steered_by_its_own_history_whatever_else_is_asked(steering, scorer, world):
    learned = steering.learn(SETTINGS)
    first, second = world.questions[:2]
    assert first.user_id == second.user_id
    alone = UserSteering(scorer, Dataset(world.task, world.labels, (first,))).scores(SETTINGS, learned).scores[0]
    for history in ((), second.history[:3], second.history):
        both = Dataset(world.task, world.labels, (first, replace(second, history=history)))
        assert np.abs(UserSteering(scorer, both).scores(SETTINGS, learned).scores[0] - alone).max() <= 1e-5


def test_an_item_that_is_the_question_itself_tells_nothing(steering, scorer, world):
    learned = steering.learn(SETTINGS)
    question = world.questions[0]
    same = replace(question.history[0], text=question.text.rsplit(": ", 1)[-1], label=world.labels[3])
    tables = [
        UserSteering(scorer, Dataset(world.task, world.labels, (replace(question, history=history),)))
        for history in (question.history, (*question.history, same))
    ]
    plain, told = (table.scores(SETTINGS, learned).scores for table in tables)
    assert (plain == told).all()


def test_one_item_is_no_direction_of_ones_own(steering, scorer, world):
    settings = replace(SETTINGS, groups=2)
    learned = steering.learn(settings)
    bare = Dataset(world.task, world.labels, tuple(replace(q, history=q.history[:1]) for q in world.questions))
    few = UserSteering(scorer, bare)
    table = few.scores(settings, learned)
    assert table.steered.all()
    groups = few._groups(learned.clusters, list(few.histories))
    assert np.allclose(few._vectors(settings, learned).personal, unit(learned.pooled)[groups], atol=1e-6)
    assert (table.scores != steering.scores(replace(settings, alpha_personal=0.0), learned).scores).any()


@pytest.mark.parametrize("share", [0.25, 0.5, 1.0])
def test_the_cosine_gate_opens_for_the_share_that_agrees_most(steering, share):
    settings = replace(SETTINGS, gate="cosine", open_share=share)
    learned = steering.learn(settings)
    moved = steering.scores(settings, learned).firings.tokens
    everyone = steering.scores(SETTINGS, learned).firings.tokens
    assert moved / everyone == pytest.approx(share, abs=0.05)


def test_the_edits_length_is_alpha_times_the_norm_of_the_states(steering):
    settings = replace(SETTINGS, alpha_general=0.0, alpha_personal=0.7)
    table = steering.scores(settings, steering.learn(settings))
    assert table.firings.mean_relative_edit == pytest.approx(0.7, rel=0.25)


def test_what_was_learned_survives_a_config(steering):
    learned = steering.learn(SETTINGS)
    again = Learned.from_listed(learned.listed())
    assert (steering.scores(SETTINGS, again).scores == steering.scores(SETTINGS, learned).scores).all()


@pytest.mark.parametrize("blocks", [2, 5])
def test_blocks_of_users_give_the_same_table(steering, scorer, world, blocks):
    settings = replace(SETTINGS, gate="cosine", open_share=0.5)
    whole = steering.scores(settings, steering.learn(settings))
    parts = UserSteering(scorer, world, blocks=blocks)
    table = parts.scores(settings, parts.learn(settings))
    assert np.abs(table.scores - whole.scores).max() <= 1e-5
    assert (table.steered == whole.steered).all()
    assert table.firings.tokens == whole.firings.tokens
    assert all(len({world.questions[i].user_id for i in rows}) == 12 / blocks for rows in parts.blocks if blocks == 2)


@pytest.mark.slow
def test_a_batch_of_50_users_is_one_question_at_a_time(scorer):
    world = short_world(8, users=50, questions_per_user=2)
    steering = UserSteering(scorer, world)
    learned = steering.learn(SETTINGS)
    together = steering.scores(SETTINGS, learned).scores
    vectors, (users, known) = steering._vectors(SETTINGS, learned), steering._users()
    assert known.all()
    edit, labels = Edit(learned.layers, alpha_personal=1.0, alpha_general=0.2), continuations(world.labels)
    for row in range(100):
        text = prompt(world.task, world.questions[row])
        alone = SteeredScorer(scorer.backbone, [text], labels, scorer.folder / "states", "alone")
        table = alone.table(vectors, edit, users[row : row + 1], np.ones(1), resume=False)
        assert np.abs(table.scores[0] - together[row]).max() <= 1e-5
    for row in range(0, 100, 20):
        served = UserSteering(scorer, Dataset(world.task, world.labels, (world.questions[row],)))
        assert np.abs(served.scores(SETTINGS, learned, resume=False).scores[0] - together[row]).max() <= 1e-5


def test_layers_are_chosen_by_how_well_the_direction_separates(steering):
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
    assert steering.scores(settings, steering.learn(settings)).firings.calls.keys() == {0, 1}


def test_histories_too_short_to_judge_give_no_preference():
    few = {0: [Pairs(np.ones((3, 2)), np.zeros((3, 2)))] * 4}
    assert separation(few, "svd").tolist() == [0.5] * 4


def test_layers_may_be_listed(steering):
    settings = replace(SETTINGS, place="1,0,1")
    assert steering.learn(settings).layers == (0, 1)
    with pytest.raises(DataError, match="place: 0,7 names layer 7; the model has 0 to 1"):
        steering.learn(replace(SETTINGS, place="0,7"))


def test_a_vector_set_says_what_it_was_found_by(steering, scorer, tmp_path):
    found = steering.vectors(replace(SETTINGS, shrink=3.0))
    (tmp_path / "vectors.safetensors").write_bytes(found.content())
    again = SteeringVectors.load(tmp_path / "vectors.safetensors")
    assert (again.personal == found.personal).all()
    assert again.users == found.users
    assert again.meta["model"] == scorer.fingerprint
    assert (again.meta["shrink"], again.meta["direction"]) == ("3.0", SETTINGS.direction)


def test_serving_with_a_gate_leaves_no_states_behind(scorer, world, tmp_path):
    served = CachedScorer(scorer.model, tmp_path / "scores")
    settings = replace(SETTINGS, gate="cosine", open_share=0.5)
    learned = UserSteering(scorer, world).learn(settings)
    table = UserSteering(served, world).scores(settings, learned, resume=False)
    assert 0 < table.steered.mean() < 1
    assert not list(tmp_path.rglob("*.states"))


def test_prompts_whose_history_was_cut_are_counted(scorer, world, tmp_path):
    short = CachedScorer(scorer.model, tmp_path / "scores")
    prompts = ["a shy baker. " * 200, "a dog."]
    assert short.backbone.context < 400
    for _ in range(2):
        short.last_states(prompts)
        assert short.truncated == 1


def test_the_general_direction_may_come_from_ccs(steering):
    settings = replace(SETTINGS, general="ccs")
    learned = steering.learn(settings)
    (layer,) = learned.layers
    assert np.linalg.norm(learned.general[layer]) == pytest.approx(1, abs=1e-5)
    assert not np.allclose(learned.general[layer], steering.learn(SETTINGS).general[layer])


def test_states_of_the_mlp_are_what_its_block_adds_last(steering, scorer, world):
    """In a Llama block the residual that leaves is the one before the MLP and the MLP's output."""
    block, mlp = steering.pairs("block"), steering.pairs("mlp")
    model = scorer.backbone.model
    recent = next(iter(block))
    text = prompt_about(world.task, steering.histories[recent], recent[0][0].text)
    heads = scorer.backbone.encoder.heads([text])
    layer = model.model.layers[1]
    with torch.inference_mode(), captured_output(layer.mlp) as added, captured_output(layer) as out:
        model(torch.tensor(heads[0].tolist())[None], use_cache=False)
    assert np.abs(mlp[recent][1].neutral[0] - added[0][0, -1].numpy()).max() <= 1e-4
    assert np.abs(block[recent][1].neutral[0] - out[0][0, -1].numpy()).max() <= 1e-4
    assert np.abs(mlp[recent][1].neutral[0] - block[recent][1].neutral[0]).max() > 0.01


def test_an_edit_of_the_mlp_takes_directions_of_the_mlp(steering):
    block, mlp = replace(SETTINGS, alpha_general=0.0), replace(SETTINGS, alpha_general=0.0, site="mlp")
    learned = steering.learn(mlp)
    assert (learned.norms == steering.learn(block).norms).all()
    expected = unit(steering._own(mlp).mean(axis=0))
    assert np.allclose(unit(learned.pooled[0]), expected, atol=1e-5)
    assert not np.allclose(unit(steering.learn(block).pooled[0]), expected, atol=0.1)
    table = steering.scores(mlp, learned)
    assert table.firings.calls.keys() == {1}
    gated = replace(mlp, gate="cosine", open_share=0.5)
    assert 0.4 <= steering.scores(gated, steering.learn(gated)).steered.mean() <= 0.6


def test_users_are_shrunk_towards_their_group_and_groups_towards_all(steering, scorer, world):
    grouped = replace(SETTINGS, groups=3, shrink=1e6)
    learned = steering.learn(replace(grouped, shrink=2.0))
    assert learned.pooled.shape[0] == 3
    groups = steering._groups(learned.clusters, steering.paired)
    own = steering._own(SETTINGS)
    for group in range(3):
        mine = own[groups == group]
        expected = (mine.sum(axis=0) + 2.0 * own.mean(axis=0)) / (len(mine) + 2.0)
        assert np.allclose(learned.pooled[group], expected, atol=1e-5)
    strong = steering._vectors(grouped, replace(learned, pooled=learned.pooled)).personal
    assert np.allclose(strong, unit(learned.pooled)[groups], atol=1e-3)
    again = Learned.from_listed(learned.listed())
    settings = replace(SETTINGS, groups=3, shrink=2.0)
    one = Dataset(world.task, world.labels, world.questions[:1])
    served = UserSteering(scorer, one).scores(settings, again, resume=False).scores[0]
    assert np.abs(served - steering.scores(settings, learned).scores[0]).max() <= 1e-5
    assert (
        steering.scores(settings, learned).scores != steering.scores(SETTINGS, steering.learn(SETTINGS)).scores
    ).any()


def test_tune_users_without_any_history_are_named(scorer, world):
    bare = Dataset(world.task, world.labels, tuple(replace(q, history=()) for q in world.questions))
    with pytest.raises(DataError, match="no tune user has two items"):
        UserSteering(scorer, bare).learn(SETTINGS)


def test_states_lie_inside_the_folder_that_was_given(steering, scorer):
    steering.scores(SETTINGS, steering.learn(SETTINGS))
    assert list((scorer.folder / "states").glob("*.states"))
    assert [path.name for path in scorer.folder.parent.iterdir()] == ["scores"]
