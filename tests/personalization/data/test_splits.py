import numpy as np
import pytest

from personalization.data.demo.world import make_world
from personalization.data.records import Dataset
from personalization.data.splits import Splits, split_train_dev, split_users, user_blocks
from personalization.errors import DataError


def test_shares_are_of_users_and_nobody_is_in_two_parts():
    dataset = make_world(0, users=100).dataset
    splits = split_users(dataset)
    users = [{q.user_id for q in splits.part(name).questions} for name in ("tune", "select", "confirm")]
    assert [len(u) for u in users] == [50, 20, 30]
    assert len(set.union(*users)) == 100


def test_a_users_part_does_not_depend_on_the_order_of_records():
    dataset = make_world(0, users=30).dataset
    turned = type(dataset)(dataset.task, dataset.labels, dataset.questions[::-1])
    assert {q.user_id for q in split_users(dataset).confirm.questions} == {
        q.user_id for q in split_users(turned).confirm.questions
    }


def test_fingerprint_sees_every_field():
    dataset = make_world(0, users=10).dataset
    other = make_world(1, users=10).dataset
    assert split_users(dataset).fingerprints() == split_users(make_world(0, users=10).dataset).fingerprints()
    assert set(split_users(dataset).fingerprints().values()).isdisjoint(split_users(other).fingerprints().values())


def test_too_few_users_and_shared_users_are_refused():
    with pytest.raises(DataError, match="has no questions"):
        split_users(make_world(0, users=1).dataset)
    dataset = make_world(0, users=4).dataset
    with pytest.raises(DataError, match="a user belongs to one split"):
        Splits(dataset, dataset, dataset)


def test_blocks_hold_whole_users_and_every_question_once():
    users = [f"u{i % 7}" for i in range(50)]
    for count in (1, 3, 5, 20):
        blocks = user_blocks(users, count)
        assert sorted(np.concatenate(blocks).tolist()) == list(range(50))
        assert len(blocks) == min(count, 7)
        owners = [{users[i] for i in rows} for rows in blocks]
        assert sum(map(len, owners)) == 7
        assert max(map(len, owners)) - min(map(len, owners)) <= 1


def test_train_files_tune_and_select_and_dev_files_confirm():
    world = make_world(0, users=20).dataset
    users = sorted({q.user_id for q in world.questions})
    train, dev = world.of_users(users[:12]), world.of_users(users[12:])
    turned = Dataset(dev.task, dev.labels[::-1], dev.questions)
    splits = split_train_dev(train, turned, {"tune": 0.6, "select": 0.2, "confirm": 0.2})
    assert [len({q.user_id for q in splits.part(part).questions}) for part in ("tune", "select", "confirm")] == [
        9,
        3,
        8,
    ]
    assert splits.confirm.labels == train.labels
    with pytest.raises(DataError, match="a user belongs to one split"):
        split_train_dev(world, dev)
    with pytest.raises(DataError, match="labels of the train and dev files differ in other"):
        split_train_dev(train, Dataset(dev.task, (*dev.labels, "other"), dev.questions))
