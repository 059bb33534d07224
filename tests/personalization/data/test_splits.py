import pytest

from personalization.data.demo.world import make_world
from personalization.data.splits import Splits, split_users
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
