from dataclasses import replace
from datetime import datetime

import numpy as np
import pytest

from personalization.data.demo.world import make_world
from personalization.data.records import Dataset, HistoryItem, Question
from personalization.data.splits import Splits, split_time, split_train_dev, split_users, user_blocks
from personalization.errors import DataError
from personalization.tasks import task


def test_shares_are_of_users_and_nobody_is_in_two_parts():
    dataset = make_world(0, users=100).dataset
    splits = split_users(dataset)
    users = [{q.user_id for q in splits.part(name).questions} for name in ("tune", "select", "confirm")]
    assert [len(u) for u in users] == [30, 10, 60]
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


def test_fingerprint_sees_dates():
    plain, asked = dated(), dated().questions[0]
    assert plain.fingerprint() != replaced(plain, date=None).fingerprint()
    items = (HistoryItem("h", "text", "a", datetime(2020, 1, 1)),)
    one, other = (
        Dataset(task("LaMP_2"), ("a", "b"), (replace(asked, history=history),)).fingerprint()
        for history in (items, (replace(items[0], date=datetime(2020, 1, 2)),))
    )
    assert one != other


def test_blocks_hold_whole_users_and_every_question_once():
    users = [f"u{i % 7}" for i in range(50)]
    for count in (1, 3, 5, 20):
        blocks = user_blocks(users, count)
        assert sorted(np.concatenate(blocks).tolist()) == list(range(50))
        assert len(blocks) == min(count, 7)
        owners = [{users[i] for i in rows} for rows in blocks]
        assert sum(map(len, owners)) == 7
        assert max(map(len, owners)) - min(map(len, owners)) <= 1


def replaced(dataset, **changes):
    return Dataset(dataset.task, dataset.labels, tuple(replace(q, **changes) for q in dataset.questions))


def dated(users=2, each=10):
    """Questions of each user, the later ones first."""
    questions = [
        Question(f"{user}-{n}", f"u{user}", f"text {user} {n}", (), "a", datetime(2000 + n, 1, 1))
        for user in range(users)
        for n in reversed(range(each))
    ]
    return Dataset(task("LaMP_2"), ("a", "b"), tuple(questions))


HALF = {"tune": 0.5, "select": 0.2, "confirm": 0.3}


def test_by_time_each_users_earliest_questions_tune_and_the_latest_confirm():
    splits = split_time(dated(), HALF)
    for part, expected in (("tune", range(5)), ("select", range(5, 7)), ("confirm", range(7, 10))):
        years = {(q.user_id, q.date.year - 2000) for q in splits.part(part).questions}
        assert years == {(user, n) for user in ("u0", "u1") for n in expected}
    assert splits.new_users == frozenset()


@pytest.mark.parametrize(("each", "sizes"), [(3, (2, 0, 1)), (4, (2, 1, 1)), (1, (1, 0, 0))])
def test_by_time_whoever_has_few_questions_tunes_first(each, sizes):
    both = Dataset(
        task("LaMP_2"), ("a", "b"), (*dated(1).questions, *replaced(dated(1, each), user_id="few").questions)
    )
    splits = split_time(both, HALF)
    parts = (splits.part(name) for name in ("tune", "select", "confirm"))
    assert tuple(sum(q.user_id == "few" for q in part.questions) for part in parts) == sizes


def test_by_time_every_question_needs_a_date():
    with pytest.raises(
        DataError, match='question 0-9 has no date.* give every question a "date".* or take split: users'
    ):
        split_time(replaced(dated(), date=None))


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
    with pytest.raises(
        DataError,
        match=r"u\S+ \(and 7 more\) is in both .*a user belongs to one split; take split: time .* or split: users",
    ):
        split_train_dev(world, dev)
    shared = split_train_dev(train, replaced(dev, user_id=users[0]), shared_users=True)
    assert {q.user_id for q in shared.confirm.questions} == {users[0]}
    assert shared.new_users == frozenset()
    with pytest.raises(DataError, match="a question has one part"):
        split_train_dev(train, train, shared_users=True)
    with pytest.raises(DataError, match="labels of the train and dev files differ in other"):
        split_train_dev(train, Dataset(dev.task, (*dev.labels, "other"), dev.questions))
