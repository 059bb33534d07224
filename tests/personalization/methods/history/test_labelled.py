"""Labelled history items as questions to learn from."""

from dataclasses import replace

import pytest

from personalization.data.demo.world import make_world
from personalization.data.records import Dataset
from personalization.errors import DataError
from personalization.methods.history.labelled import (
    OTHERS,
    held_out,
    labelled_items,
    needed,
    varied,
    with_words_dropped,
)
from personalization.tasks import task


@pytest.fixture(scope="module")
def world():
    return make_world(7, users=16, questions_per_user=2).dataset


def test_items_are_the_labelled_history_without_what_is_asked(world):
    items = labelled_items(world).questions
    question = world.questions[0]
    own = [item for item in items if item.user_id == question.user_id]
    assert len(own) == max(len(q.history) for q in world.questions if q.user_id == question.user_id)
    first = question.history[0]
    asked = replace(question, text=question.text.rpartition("description: ")[0] + "description: " + first.text)
    told = labelled_items(Dataset(world.task, world.labels, (asked, *world.questions[1:]))).questions
    mine = [item for item in told if item.user_id == asked.user_id]
    assert not any(first.text in item.text for item in mine)
    assert not any(first.text == other.text for item in mine for other in item.history)
    bare = Dataset(world.task, world.labels, tuple(replace(q, history=()) for q in world.questions))
    with pytest.raises(DataError, match="there are none; leave them out of the chain"):
        needed(labelled_items(bare))


def test_an_item_knows_the_others_and_not_itself(world):
    items = labelled_items(world).questions
    for item in items[:40]:
        mine = [other for other in items if other.user_id == item.user_id]
        assert len(item.history) == min(OTHERS, len(mine) - 1)
        assert task("LaMP_2").item(item.text) not in {other.text for other in item.history}
        assert item.gold in world.labels


def test_an_item_without_a_label_of_the_task_is_known_and_not_learned(world):
    def odd(question):
        return replace(question, history=(replace(question.history[0], label="opera"), *question.history[1:]))

    items = labelled_items(Dataset(world.task, world.labels, tuple(map(odd, world.questions)))).questions
    assert {item.gold for item in items} <= set(world.labels)
    assert any(other.label == "opera" for item in items for other in item.history)


@pytest.mark.parametrize("level", ["unified", "cluster", "user"])
def test_what_is_judged_is_not_learned(world, level):
    items = labelled_items(world)
    learned, judged = held_out(items, level)
    assert {q.id for q in learned.questions} | {q.id for q in judged.questions} == {q.id for q in items.questions}
    assert len(learned) + len(judged) == len(items)
    taught, asked, everybody = ({q.user_id for q in part.questions} for part in (learned, judged, items))
    if level == "user":
        assert taught == asked == everybody
    else:
        assert not taught & asked
        assert len(asked) == 4


def test_dropped_words_leave_the_instruction(world):
    items = labelled_items(world)
    dropped = with_words_dropped(items, 0.5)
    for before, after in zip(items.questions, dropped.questions, strict=True):
        old, new = (world.task.item(q.text) for q in (before, after))
        assert after.text.removesuffix(new) == before.text.removesuffix(old)
        assert set(new.split()) <= set(old.split())
        assert new
        assert (after.id, after.gold, after.history) == (before.id, before.gold, before.history)
    assert sum(len(q.text) for q in dropped.questions) < sum(len(q.text) for q in items.questions)
    assert with_words_dropped(items, 0.0) == items


def test_items_in_front_are_left_out_or_stand_otherwise(world):
    chosen = [list(q.history[:6]) for q in world.questions] * 10
    assert varied(chosen, 20, 0.0, 0.0, 0.0) == chosen
    half = varied(chosen, 20, 0.5, 0.0, 0.0)
    assert all([item for item in before if item in after] == after for before, after in zip(chosen, half, strict=True))
    assert 0.4 < sum(map(len, half)) / sum(map(len, chosen)) < 0.6
    first = varied(chosen, 3, 0.0, 0.0, 0.0)
    assert first == [items[:3] for items in chosen]
    swapped = varied(chosen, 3, 0.0, 0.5, 0.0)
    assert all(len(after) == len(before) for before, after in zip(first, swapped, strict=True))
    assert all(
        a == b or b in items[3:]
        for items, before, after in zip(chosen, first, swapped, strict=True)
        for a, b in zip(before, after, strict=True)
    )
    assert (
        0.4
        < sum(b not in before for before, after in zip(first, swapped, strict=True) for b in after)
        / sum(map(len, first))
        < 0.6
    )
    turned = varied(chosen, 20, 0.0, 0.0, 0.5)
    assert all(set(before) == set(after) for before, after in zip(chosen, turned, strict=True))
    assert 0.35 < sum(before != after for before, after in zip(chosen, turned, strict=True)) / len(chosen) < 0.6
