"""From histories to adapters to scores."""

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from peft import PeftModel

from personalization.backbones.cached import CachedScorer
from personalization.backbones.causal import load_causal
from personalization.data.records import Dataset
from personalization.deployment import CONFIG, FORMAT, read_config, write_files
from personalization.errors import DataError
from personalization.methods.adapters.edit import AdapterEdit
from personalization.methods.adapters.trained import Trained
from personalization.methods.adapters.user_adapters import Plan, UserAdapters, placed
from personalization.methods.history.asking import Asking
from personalization.methods.history.labelled import held_out, labelled_items
from personalization.stages import stage
from personalization.stages.chain import Fitted
from personalization.stages.work import Tools, begin, blended, scores_of
from personalization.tasks import task
from tests.tiny import of_table, short_world

PLAN = Plan(level="cluster", groups=2, epochs=2, lr=2e-2)
SHORT = replace(PLAN, epochs=1)


class Stopped(Exception):
    pass


def timeless(trained):
    """The record of a training without how long it took."""
    return {name: value for name, value in trained.record.items() if name != "seconds"}


def scores(dataset, trained, scorer, asking=None):
    """Scores of questions as the stage gives them, without a name: nothing is kept in memory."""
    tools = Tools(scorer)
    work = begin(dataset, tools)
    if asking is not None:
        given = SimpleNamespace(**asdict(asking), scale=20.0)
        work = stage("prompt").act(given, None, work, tools)
    return scores_of(stage("adapter").act(SimpleNamespace(blend=1.0), trained, work, tools), tools)


def reloaded(trained, folder):
    """What was trained, from a copy."""
    return Trained.load(json.loads(json.dumps(trained.save(folder))), folder)


def plain_scores(scorer, dataset):
    return scorer.label_logprobs(
        [dataset.task.prompt_of(q.text) for q in dataset.questions],
        [dataset.task.continuation(own) for own in dataset.labels],
    )


def strangers(users, questions=1):
    """Questions of users that nobody has seen."""
    new = short_world(9, users=users, questions_per_user=questions)
    return Dataset(new.task, new.labels, tuple(replace(q, user_id=f"new {q.user_id}") for q in new.questions))


def test_gold_labels_of_questions_change_nothing(adapters, scorer, world, tmp_path):
    other = Dataset(world.task, world.labels, tuple(replace(q, gold=world.labels[0]) for q in world.questions))
    learned, again = adapters.learn(world, PLAN), UserAdapters(scorer, tmp_path).learn(other, PLAN)
    assert learned.folder.name == again.folder.name
    assert timeless(learned) == timeless(again)
    assert learned.content == again.content


@pytest.mark.slow
def test_users_with_nothing_to_learn_from_get_no_prefix(adapters, scorer, world):
    user = world.questions[0].user_id
    bare = tuple(replace(q, history=()) if q.user_id == user else q for q in world.questions)
    lacking = Dataset(world.task, world.labels, bare)
    trained = adapters.learn(lacking, replace(PLAN, adapter="prefix", level="user", prefix_tokens=2))
    assert trained.idle == (trained.groups[user],)
    own = np.array([q.user_id == user for q in lacking.questions])
    assert (trained.assigned(lacking, scorer.embeddings)[own] == -1).all()
    table, below = scores(lacking, trained, scorer), scores(lacking, trained.below, scorer)
    assert np.abs(table[own] - below[own]).max() <= 1e-4
    assert np.abs(table[~own] - below[~own]).max() > 0.01


@pytest.mark.slow
def test_what_judges_a_users_adapter_is_new_to_what_it_starts_from(adapters, world):
    plan = replace(PLAN, adapter="prefix", level="user", prefix_tokens=2)
    learned, judged = held_out(labelled_items(world), "user")
    below = adapters.learn(world, plan).below
    assert below.record["items"] + below.record["held_out_items"] == len(learned)
    assert len(judged)
    assert adapters.learn(world, Plan()).folder != below.folder


def test_what_was_trained_is_read_again_and_a_stopped_training_goes_on(scorer, world, tmp_path):
    adapters = UserAdapters(scorer, tmp_path)
    seen = []

    def stop(items, scores, records):
        assert len(records) == 1
        seen.append(scores.shape)
        assert scores.shape[0] == len(items)
        raise Stopped

    with pytest.raises(Stopped):
        adapters.learn(world, SHORT, stop)
    assert seen[0][1] == 15
    trained = adapters.learn(world, SHORT)
    whole = UserAdapters(scorer, tmp_path / "other").learn(world, SHORT)
    assert timeless(trained) == timeless(whole)
    assert trained.content == whole.content
    stamp = (trained.folder / "record.json").stat().st_mtime_ns
    assert adapters.learn(world, SHORT).record == trained.record
    assert (trained.folder / "record.json").stat().st_mtime_ns == stamp


def test_a_trained_group_is_what_peft_makes_of_it(adapters, scorer, world, tiny_model):
    from personalization.backbones.causal import CausalBackbone, load_causal

    trained = adapters.learn(world, PLAN)
    table = scores(world, trained, scorer)
    for group in range(2):
        loaded = load_causal(str(tiny_model), device="cpu")
        adapted = PeftModel.from_pretrained(loaded.model, str(trained.folder / f"group-{group}")).merge_and_unload()
        peer = CausalBackbone(adapted, loaded.tokenizer)
        own = [i for i, q in enumerate(world.questions) if trained.groups[q.user_id] == group]
        expected = peer.label_logprobs(
            [world.task.prompt_of(world.questions[i].text) for i in own],
            [world.task.continuation(own) for own in world.labels],
        )
        assert np.abs(table[own] - expected).max() <= 1e-3
    assert np.abs(table - plain_scores(scorer, world)).max() > 0.01


@pytest.mark.slow
def test_new_users_get_the_nearest_group_or_at_level_user_the_model_itself(adapters, scorer, world, tmp_path):
    new = strangers(4)
    plain = plain_scores(scorer, new)
    for level, same in (("unified", False), ("cluster", False), ("user", True)):
        trained = reloaded(adapters.learn(world, replace(PLAN, level=level)), tmp_path / level)
        assert (np.abs(scores(new, trained, scorer) - plain).max() <= 1e-4) == same
    known = scores(world, adapters.learn(world, replace(PLAN, level="user")), scorer)
    assert np.abs(known - plain_scores(scorer, world)).max() > 0.01


@pytest.mark.slow
def test_an_anchored_adapter_begins_at_the_unified_one(adapters, scorer, world):
    pinned = adapters.learn(world, replace(PLAN, anchor=1e4, lr=1e-4))
    free, origin = adapters.learn(world, replace(PLAN, lr=1e-4)), adapters.learn(world, Plan())
    assert pinned.record["seconds"] > origin.record["seconds"] > 0
    begins = scores(world, origin, scorer)
    near, far = (np.abs(scores(world, trained, scorer) - begins).max() for trained in (pinned, free))
    assert near < 0.1 * far


def test_changed_adapters_are_not_served(adapters, world, tmp_path):
    trained = adapters.learn(world, PLAN)
    described = write_files(Fitted({"adapter": SimpleNamespace()}, {"adapter": trained}), tmp_path)
    place = {"path": "m", "device": "cpu", "dtype": "float32", "blocks": None, "chat": False, "fingerprint": "f"}
    config = {"format": FORMAT, "generation": 1, "model": place, "provenance": {}}
    told = {**config, "task": world.task.name, "labels": list(world.labels), **described}
    (tmp_path / CONFIG).write_text(yaml.safe_dump(told))
    assert read_config(tmp_path)["chain"] == described["chain"]
    for group in range(2):
        weights = tmp_path / described["folder"] / "adapters" / f"group-{group}" / "adapter_model.safetensors"
        data = bytearray(weights.read_bytes())
        data[-1] ^= 1
        weights.write_bytes(data)
        with pytest.raises(DataError, match=f"group-{group}/adapter_model.safetensors: missing or changed"):
            read_config(tmp_path)
        data[-1] ^= 1
        weights.write_bytes(data)


@pytest.mark.parametrize("level", of_table(["cluster", "user"], "cluster"))
def test_a_copy_is_what_was_trained(adapters, scorer, world, level, tmp_path):
    trained = adapters.learn(world, replace(PLAN, level=level))
    again = reloaded(trained, tmp_path / "a" / "b")
    assert again.content == trained.content
    assert again.groups == (trained.groups if level == "user" else {})
    assert (again.assigned(world, scorer.embeddings) == trained.assigned(world, scorer.embeddings)).all()
    assert (scores(world, again, scorer) == scores(world, trained, scorer)).all()
    shutil.rmtree(tmp_path / "a" / "b" / "group-0")
    with pytest.raises(FileNotFoundError):
        Trained.load(again.save(tmp_path / "c"), tmp_path / "c")


def test_users_stand_in_the_plane_with_their_groups(adapters, scorer, world):
    trained = adapters.learn(world, PLAN)
    found = placed(world, trained, scorer.embeddings)
    users = list(dict.fromkeys(q.user_id for q in world.questions))
    assert found["places"].shape == (len(users), 2)
    assert found["groups"].tolist() == [trained.groups[user] for user in users]
    assert found["silhouette"] == trained.clusters.silhouette
    idle = placed(world, replace(trained, idle=(0,)), scorer.embeddings)["groups"]
    assert (idle == np.where(found["groups"] == 0, -1, found["groups"])).all()


def test_a_blend_is_a_mean_of_log_probabilities():
    base, adapted = np.array([[0.0, 1.0]], dtype=np.float32), np.array([[2.0, -1.0]], dtype=np.float32)
    for weight in (0.0, 0.5, 1.0):
        found = blended(base, adapted, weight)
        assert found[0, 0] - found[0, 1] == pytest.approx((1 - weight) * (0 - 1) + weight * (2 + 1))
    assert np.exp(blended(base, adapted, 1.0)).sum() == pytest.approx(1)


def test_items_of_the_history_stand_in_front_when_learning_and_when_asked(adapters, scorer, world, tmp_path):
    asking = Asking(k=1)
    plan = replace(PLAN, level="unified", epochs=1, asking=asking)
    trained = adapters.learn(world, plan)
    assert trained.folder != adapters.learn(world, replace(plan, asking=Asking())).folder
    items = labelled_items(world)
    prompts = adapters._prompts(items, plan)
    for text, item in zip(prompts, items.questions, strict=True):
        newest = [f'"{other.text}" is "{other.label}"' for other in item.history[-1:]]
        assert all(other in text for other in newest)
        assert text.endswith(item.text + "\nanswer:")
    table = scores(world, trained, scorer, asking)
    again = scores(world, reloaded(trained, tmp_path), scorer, asking)
    assert (table == again).all()
    question = world.questions[0]
    text = world.task.prompt_of(question.text, question.history[-1:])
    edit = AdapterEdit(trained.on(scorer.backbone.model), np.zeros(1, dtype=np.int64), ["u"])
    alone = scorer.backbone.fixed([text], [world.task.continuation(own) for own in world.labels], [edit]).table([edit])
    assert np.abs(alone[0] - table[0]).max() <= 1e-4


def test_what_was_trained_tells_a_pruner_the_same_again(scorer, world, tmp_path):
    adapters, told = UserAdapters(scorer, tmp_path), {1: [], 2: []}
    for turn, seen in told.items():
        adapters.learn(world, SHORT, lambda items, scores, records, seen=seen: seen.append((scores, list(records))))
        assert len(seen) == len(adapters.learn(world, SHORT).record["records"]), turn
    for (first, records), (again, same) in zip(*told.values(), strict=True):
        assert (first == again).all()
        assert records == same


@pytest.mark.slow
def test_two_workers_train_the_same_adapters_once(tiny_model, world, tmp_path, monkeypatch):
    trainings = []
    train = UserAdapters._train
    monkeypatch.setattr(UserAdapters, "_train", lambda *given: (trainings.append(1), train(*given)))
    workers = [UserAdapters(CachedScorer(str(tiny_model), tmp_path / "scores"), tmp_path / "a") for _ in range(2)]
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda worker: worker.learn(world, replace(PLAN, epochs=1)), workers))
    assert found[0].content == found[1].content
    assert found[0].record == found[1].record
    assert len(trainings) == 1


@pytest.mark.slow
def test_what_a_second_view_shows_tells_trainings_apart(adapters, world):
    """The item that is swapped in ranks behind those of the plain prompts."""
    plan = replace(PLAN, level="unified", asking=Asking(k=1), history_swap=1.0, epochs=2, start=0.9)

    def with_third_newest(text):
        questions = []
        for q in world.questions:
            *older, third, second, newest = sorted(q.history, key=lambda item: item.date)
            third = replace(third, label=None, text=text or third.text)
            questions.append(replace(q, history=(*older, third, second, newest)))
        return Dataset(world.task, world.labels, tuple(questions))

    first, second = (adapters.learn(with_third_newest(text), plan) for text in ("", "something else"))
    assert first.folder != second.folder


@pytest.mark.slow
def test_a_second_view_shows_the_same_items_differently(adapters, world):
    rates = {"word_dropout": 0.2, "history_dropout": 0.5, "history_order": 1.0}
    plan = replace(PLAN, level="unified", asking=Asking(k=2), **rates, epochs=2)
    assert plan.varies
    assert not replace(plan, asking=Asking(), word_dropout=0.0).varies
    plain = adapters.learn(world, replace(plan, word_dropout=0.0, history_dropout=0.0, history_order=0.0))
    seen = adapters.learn(world, plan)
    first, second = plain.record["records"], seen.record["records"]
    assert first[0]["loss"] == pytest.approx(second[0]["loss"], abs=1e-3)  # fewer words, fewer batches: other rates
    assert abs(first[-1]["loss"] - second[-1]["loss"]) > 1e-2


@pytest.mark.slow
def test_a_pruner_sees_the_same_items_at_every_level(adapters, world):
    seen = {}
    for level in ("unified", "cluster", "user"):
        plan = replace(PLAN, level=level, lr=3e-3, epochs=1)
        adapters.learn(
            world, plan, lambda items, *_, level=level: seen.setdefault(level, [q.id for q in items.questions])
        )
    assert seen["unified"] == seen["cluster"] == seen["user"]
    learned = {q.id for level in ("unified", "user") for q in held_out(labelled_items(world), level)[0].questions}
    assert seen["user"]
    assert not set(seen["user"]) & learned


@pytest.mark.slow
def test_serving_keeps_no_states(adapters, scorer, world, tmp_path, monkeypatch):
    trained = adapters.learn(world, PLAN)
    prefix = adapters.learn(world, replace(PLAN, adapter="prefix", level="user", prefix_tokens=2, epochs=1))
    expected = scores(world, trained, scorer)
    before = sorted(scorer.folder.rglob("*"))
    monkeypatch.chdir(tmp_path)
    table = scores(world, trained, scorer.unstored())
    assert np.abs(table - expected).max() <= 1e-4
    new = tuple(replace(q, user_id=f"new {q.user_id}") for q in world.questions[:4])
    scores(Dataset(world.task, world.labels, new), prefix, scorer.unstored())
    assert sorted(scorer.folder.rglob("*")) == before
    assert not list(tmp_path.rglob("*"))


@pytest.mark.slow
@pytest.mark.parametrize("level", ["cluster", "user"])
def test_a_prefix_stands_on_the_frozen_lora_of_all_users(adapters, scorer, world, tiny_model, level, tmp_path):
    plan = replace(PLAN, adapter="prefix", level=level, prefix_tokens=5, lr=5e-2)
    trained = adapters.learn(world, plan)
    unified = trained.below
    if level == "cluster":
        assert unified.folder == adapters.learn(world, Plan()).folder
    records = trained.record["records"]
    assert min(record["held_out_loss"] for record in records[1:]) < records[0]["held_out_loss"]
    table = scores(world, reloaded(trained, tmp_path), scorer)
    users = sorted({q.user_id for q in world.questions})[:2]
    for user in users:
        group = trained.groups[user]
        loaded = load_causal(str(tiny_model), device="cpu")
        merged = PeftModel.from_pretrained(loaded.model, str(unified.folder / "group-0")).merge_and_unload()
        peer = PeftModel.from_pretrained(merged, str(trained.folder / f"group-{group}")).eval()
        for row in [i for i, q in enumerate(world.questions) if q.user_id == user]:
            expected = by_hand(peer, loaded.tokenizer, world.task.prompt_of(world.questions[row].text), world.labels)
            assert np.abs(table[row] - expected).max() <= 1e-3
    plain = scores(world, unified, scorer)
    assert np.abs(table - plain).max() > 0.01
    new = strangers(4)
    both = Dataset(world.task, world.labels, (*new.questions, *world.questions))
    mixed = scores(both, trained, scorer)
    assert np.abs(mixed[len(new) :] - table).max() <= 1e-4
    assert (np.abs(mixed[: len(new)] - scores(new, unified, scorer)).max() <= 1e-4) == (level == "user")


def by_hand(model, tokenizer, text, labels):
    """log p(label | prompt) of each label, one forward pass each."""
    found = []
    for label in [task("LaMP_2").continuation(own) for own in labels]:
        head, tail = (tokenizer(part, add_special_tokens=part is text)["input_ids"] for part in (text, label))
        with torch.inference_mode():
            logits = model(input_ids=torch.tensor([head + tail])).logits[0].log_softmax(-1)
        found.append(sum(float(logits[len(head) - 1 + i, token]) for i, token in enumerate(tail)))
    return np.array(found)
