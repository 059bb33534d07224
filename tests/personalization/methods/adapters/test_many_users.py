"""Adapters of more users than are to be held at once: trained in parts, and read from disk as they are needed."""

from dataclasses import replace

import numpy as np
import pytest

from personalization.data.records import Dataset
from personalization.methods.adapters import user_adapters
from personalization.methods.adapters.stored import StoredAdapters
from personalization.methods.adapters.user_adapters import UserAdapters
from personalization.methods.training import loop
from tests.personalization.methods.adapters.test_user_adapters import PLAN, Stopped, plain_scores, scores, strangers
from tests.tiny import short_world

OF_USERS = replace(PLAN, level="user", epochs=1)


@pytest.fixture(scope="module")
def few():
    return short_world(7, users=5, questions_per_user=1)


def of_users(dataset, users):
    """The questions of some users."""
    return Dataset(dataset.task, dataset.labels, tuple(q for q in dataset.questions if q.user_id in users))


def in_parts_of(monkeypatch, adapters, dataset, count):
    """So many users train side by side."""
    one = adapters.learn(of_users(dataset, {dataset.questions[0].user_id}), OF_USERS).record["trainable"]
    monkeypatch.setattr(user_adapters, "TOGETHER", 4 * one * count)


def test_users_train_in_parts_each_as_if_it_were_all(monkeypatch, adapters, scorer, few, tmp_path):
    in_parts_of(monkeypatch, adapters, few, 2)
    trained = UserAdapters(scorer, tmp_path).learn(few, OF_USERS)
    assert trained.record["parts"] == 3
    users, found = list(trained.groups), []
    for first in (0, 2, 4):
        alone = adapters.learn(of_users(few, set(users[first : first + 2])), OF_USERS)
        assert alone.record["parts"] == 1
        for user, number in alone.groups.items():
            whole = trained.folder / f"group-{trained.groups[user]}" / "adapter_model.safetensors"
            assert whole.read_bytes() == (alone.folder / f"group-{number}" / "adapter_model.safetensors").read_bytes()
        found.append(alone.record)
    assert trained.record["trainable"] == sum(part["trainable"] for part in found)
    losses = [part["records"][0]["held_out_loss"] for part in found]
    assert min(losses) < trained.record["records"][0]["held_out_loss"] < max(losses)
    assert not list(trained.folder.glob("part-*"))


def test_a_training_in_parts_goes_on_with_the_part_that_it_stood_in(monkeypatch, adapters, scorer, few, tmp_path):
    in_parts_of(monkeypatch, adapters, few, 2)
    counted, whole = [], UserAdapters(scorer, tmp_path / "whole").learn(few, OF_USERS)
    train = loop.train

    def interrupted(*given):
        counted.append(1)
        if len(counted) == 2:
            raise Stopped
        return train(*given)

    monkeypatch.setattr(loop, "train", interrupted)
    again = UserAdapters(scorer, tmp_path / "again")
    with pytest.raises(Stopped):
        again.learn(few, OF_USERS)
    assert again.learn(few, OF_USERS).content == whole.content
    assert len(counted) == 4


@pytest.mark.parametrize("adapter", ["lora", pytest.param("prefix", marks=pytest.mark.slow)])
def test_adapters_that_memory_is_not_to_hold_answer_the_same(monkeypatch, adapters, scorer, few, adapter):
    trained = adapters.learn(few, replace(OF_USERS, adapter=adapter, prefix_tokens=2))
    lacking = Dataset(few.task, few.labels, (*few.questions, *strangers(2).questions))
    held = scores(lacking, trained, scorer)
    monkeypatch.setattr("personalization.methods.adapters.trained.HELD", 0)
    assert isinstance(trained.on(scorer.backbone.model), StoredAdapters)
    assert np.abs(scores(lacking, trained, scorer) - held).max() <= 1e-5
    assert np.abs(held - plain_scores(scorer, lacking)).max() > 1e-3
