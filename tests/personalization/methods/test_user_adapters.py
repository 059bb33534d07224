"""From histories to adapters to scores."""

import json
from dataclasses import replace

import numpy as np
import pytest
from peft import PeftModel

from personalization.backbones.cached import CachedScorer
from personalization.data.demo.world import make_world
from personalization.data.prompts import continuations, prompt
from personalization.data.records import Dataset
from personalization.errors import DataError
from personalization.methods.user_adapters import (
    Plan,
    Trained,
    UserAdapters,
    UserHeads,
    blended,
    held_out,
    labelled_items,
    load_head,
    with_words_dropped,
)

PLAN = Plan(level="cluster", groups=2, epochs=2, lr=2e-2)


class Stopped(Exception):
    pass


@pytest.fixture(scope="module")
def world():
    return make_world(7, users=16, questions_per_user=2).dataset


@pytest.fixture(scope="module")
def scorer(tiny_model, tmp_path_factory):
    return CachedScorer(str(tiny_model), tmp_path_factory.mktemp("home") / "scores")


@pytest.fixture(scope="module")
def adapters(scorer):
    return UserAdapters(scorer, scorer.folder.parent / "adapters")


def test_items_are_the_labelled_history_without_what_is_asked(world):
    items = labelled_items(world)
    question = world.questions[0]
    own = [p for p, user in zip(items.prompts, items.users, strict=True) if user == question.user_id]
    assert len(own) == max(len(q.history) for q in world.questions if q.user_id == question.user_id)
    first = question.history[0]
    asked = replace(question, text=question.text.rpartition("description: ")[0] + "description: " + first.text)
    told = Dataset(world.task, world.labels, (asked, *world.questions[1:]))
    assert not any(first.text in p for p, user in zip(*labelled_items(told)[::2], strict=True) if user == asked.user_id)
    with pytest.raises(DataError, match="there are none; use objective: calibration"):
        labelled_items(Dataset(world.task, world.labels, tuple(replace(q, history=()) for q in world.questions)))


@pytest.mark.parametrize("level", ["unified", "cluster", "user"])
def test_what_is_judged_is_not_learned(world, level):
    items = labelled_items(world)
    learned, judged = held_out(items, level)
    assert len(learned.users) + len(judged.users) == len(items.users)
    if level == "user":
        assert set(judged.users) == set(items.users) == set(learned.users)
    else:
        assert not set(judged.users) & set(learned.users)
        assert len(set(judged.users)) == 4


def test_gold_labels_of_questions_change_nothing(adapters, world):
    other = Dataset(world.task, world.labels, tuple(replace(q, gold=world.labels[0]) for q in world.questions))
    assert adapters.learn(world, PLAN).folder == adapters.learn(other, PLAN).folder


def test_what_was_trained_is_read_again_and_a_stopped_training_goes_on(scorer, world, tmp_path):
    adapters = UserAdapters(scorer, tmp_path)
    seen = []

    def stop(items, scores):
        seen.append(scores.shape)
        raise Stopped

    with pytest.raises(Stopped):
        adapters.learn(world, PLAN, stop)
    assert seen[0][1] == 15
    trained = adapters.learn(world, PLAN)
    whole = UserAdapters(scorer, tmp_path / "other").learn(world, PLAN)
    assert trained.record == whole.record
    assert trained.listed()["sha256"] == whole.listed()["sha256"]
    stamp = (trained.folder / "record.json").stat().st_mtime_ns
    assert adapters.learn(world, PLAN).record == trained.record
    assert (trained.folder / "record.json").stat().st_mtime_ns == stamp


def test_a_trained_group_is_what_peft_makes_of_it(adapters, scorer, world, tiny_model):
    from personalization.backbones.causal import CausalBackbone, load_causal

    trained = adapters.learn(world, PLAN)
    table = adapters.scores(world, trained)
    groups = json.loads((trained.folder / "cluster_map.json").read_text())["users"]
    for group in range(2):
        loaded = load_causal(str(tiny_model), device="cpu")
        adapted = PeftModel.from_pretrained(loaded.model, str(trained.folder / f"group-{group}")).merge_and_unload()
        peer = CausalBackbone(adapted, loaded.tokenizer)
        own = [i for i, q in enumerate(world.questions) if groups[q.user_id] == group]
        expected = peer.label_logprobs(
            [prompt(world.task, world.questions[i]) for i in own], continuations(world.labels)
        )
        assert np.abs(table[own] - expected).max() <= 1e-3
    plain = scorer.label_logprobs([prompt(world.task, q) for q in world.questions], continuations(world.labels))
    assert np.abs(table - plain).max() > 0.01


def test_new_users_get_the_nearest_group_or_at_level_user_the_model_itself(adapters, scorer, world):
    new = make_world(9, users=4, questions_per_user=1).dataset
    new = Dataset(new.task, new.labels, tuple(replace(q, user_id=f"new {q.user_id}") for q in new.questions))
    plain = scorer.label_logprobs([prompt(new.task, q) for q in new.questions], continuations(new.labels))
    for level, same in (("unified", False), ("cluster", False), ("user", True)):
        trained = adapters.learn(world, replace(PLAN, level=level))
        scores = adapters.scores(new, Trained.from_listed(json.loads(json.dumps(trained.listed()))))
        assert (np.abs(scores - plain).max() <= 1e-4) == same
    known = adapters.scores(world, adapters.learn(world, replace(PLAN, level="user")))
    asked = scorer.label_logprobs([prompt(world.task, q) for q in world.questions], continuations(world.labels))
    assert np.abs(known - asked).max() > 0.01


def test_an_anchored_adapter_begins_at_the_unified_one(adapters, world):
    unified = adapters.learn(world, replace(PLAN, level="unified"))
    pinned = adapters.learn(world, replace(PLAN, anchor=1e4, lr=1e-4))
    free = adapters.learn(world, replace(PLAN, lr=1e-4))
    begins = adapters.scores(world, adapters.learn(world, replace(PLAN, level="unified", lr=1e-4)))
    assert np.abs(adapters.scores(world, pinned) - begins).max() < np.abs(adapters.scores(world, free) - begins).max()
    assert unified.count == 1


def test_changed_adapters_are_not_served(adapters, world):
    listed = adapters.learn(world, replace(PLAN, rank=2)).listed()
    weights = adapters.folder / listed["folder"].rpartition("/")[2] / "group-0" / "adapter_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(DataError, match="missing or changed; restore them or promote again"):
        Trained.from_listed(listed)


def test_dropped_words_leave_the_instruction(world):
    items = labelled_items(world).some(range(20))
    dropped = with_words_dropped(items, 0.5)
    for before, after in zip(items.prompts, dropped.prompts, strict=True):
        stem = before.rpartition(": ")[0]
        assert after.startswith(stem)
        assert set(after[len(stem) :].split()) <= set(before[len(stem) :].split())
    assert sum(map(len, dropped.prompts)) < sum(map(len, items.prompts))
    assert with_words_dropped(items, 0.0).prompts == items.prompts


@pytest.mark.parametrize("kind", ["causal", "encoder"])
def test_a_head_is_saved_under_its_content_and_answers_the_same(kind, tiny_model, tiny_encoder, world, tmp_path):
    scorer = CachedScorer(str({"causal": tiny_model, "encoder": tiny_encoder}[kind]), tmp_path / "scores")
    heads = UserHeads(scorer, tmp_path)
    head = heads.learn(world, 0.1, 0.9)
    listed = heads.save(head)
    scores = heads.scores(world, head, 0.9)
    assert np.allclose(np.exp(scores).sum(axis=1), 1, atol=1e-4)
    assert (heads.scores(world, load_head(json.loads(json.dumps(listed))), 0.9) == scores).all()
    crossed = heads.crossed(world, 0.1, 0.9)
    assert crossed.shape == scores.shape
    assert (crossed != scores).any()
    (tmp_path / listed["file"].rpartition("/")[2]).write_bytes(b"x")
    with pytest.raises(DataError, match="the head of this config is missing or changed"):
        load_head(listed)


def test_a_crossed_head_has_not_seen_the_users_it_answers(tiny_encoder, world, tmp_path):
    heads = UserHeads(CachedScorer(str(tiny_encoder), tmp_path / "scores"), tmp_path)
    before = heads.crossed(world, 0.1, 0.0)
    user = world.questions[0].user_id
    own = [i for i, q in enumerate(world.questions) if q.user_id == user]

    def relabelled(q):
        items = tuple(replace(item, label=world.labels[0]) for item in q.history)
        return replace(q, history=items) if q.user_id == user else q

    after = heads.crossed(Dataset(world.task, world.labels, tuple(map(relabelled, world.questions))), 0.1, 0.0)
    assert (before[own] == after[own]).all()
    assert (before != after).any()


def test_a_blend_is_a_mean_of_log_probabilities():
    base, adapted = np.array([[0.0, 1.0]], dtype=np.float32), np.array([[2.0, -1.0]], dtype=np.float32)
    assert (blended(base, adapted, 1.0) == adapted).all()
    half = blended(base, adapted, 0.5)
    assert half[0, 0] - half[0, 1] == pytest.approx(0.5 * (0 - 1) + 0.5 * (2 + 1))
