"""The same questions with other histories."""

import itertools
from collections import Counter
from dataclasses import replace
from datetime import datetime, timedelta

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from personalization.data.exchange import exchange, newest
from personalization.data.known import known_items
from personalization.data.records import Dataset, HistoryItem, Question
from personalization.tasks import task

LABELS = ("comedy", "drama")
FRAME = "tags: [comedy, drama] description: "
lengths_of_users = st.lists(st.lists(st.integers(0, 30), min_size=1, max_size=3), min_size=2, max_size=6)


def world(lengths):
    """Users whose questions know so many items each; a history grows from question to question."""
    questions = []
    for user, known in enumerate(lengths):
        for place, count in enumerate(sorted(known)):
            items = tuple(HistoryItem(f"{user}-{n}", f"text {user} {n}", LABELS[n % 2]) for n in range(count))
            questions.append(Question(f"{user}.{place}", f"u{user}", f"{FRAME}asked {user} {place}", items, "comedy"))
    return Dataset(task("LaMP_2"), LABELS, tuple(questions))


def pairings(users):
    """Every way to put an even number of users into pairs."""
    if not users:
        yield []
        return
    first, *rest = users
    for other in rest:
        for more in pairings([user for user in rest if user != other]):
            yield [(first, other), *more]


@settings(max_examples=60, deadline=None)
@given(lengths_of_users)
def test_nobody_keeps_a_history_and_each_is_given_once(lengths):
    dataset = world(lengths)
    found = exchange(dataset)
    assert sorted(found.givers) == sorted(found.givers.values()) == sorted({q.user_id for q in dataset.questions})
    assert all(user != giver for user, giver in found.givers.items())
    assert set(Counter(found.rings.values()).values()) <= {2, 3}
    assert all(found.rings[user] == found.rings[giver] for user, giver in found.givers.items())
    for before, after in zip(dataset.questions, found.dataset.questions, strict=True):
        assert (after.id, after.text, after.gold) == (before.id, before.text, before.gold)
        assert after.user_id == found.givers[before.user_id]
        own = [len(q.history) for q in dataset.questions if q.user_id == after.user_id]
        assert abs(len(after.history) - len(before.history)) == min(abs(n - len(before.history)) for n in own)
        assert all(item.id.startswith(f"{after.user_id[1:]}-") for item in after.history)


@settings(max_examples=40, deadline=None)
@given(lengths_of_users, st.randoms(use_true_random=False))
def test_the_order_of_the_data_does_not_matter(lengths, random):
    dataset = world(lengths)
    mixed = list(dataset.questions)
    random.shuffle(mixed)
    found, again = exchange(dataset), exchange(replace(dataset, questions=tuple(mixed)))
    assert found.givers == again.givers
    assert {q.id: q for q in found.dataset.questions} == {q.id: q for q in again.dataset.questions}
    assert found.off_by == again.off_by


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 40), min_size=2, max_size=6).filter(lambda lengths: len(lengths) % 2 == 0))
def test_no_other_pairs_have_lengths_that_differ_less(lengths):
    def cost(pairs):
        return sum(abs(lengths[int(one[1:])] - lengths[int(other[1:])]) for one, other in pairs)

    found = exchange(world([[length] for length in lengths]))
    chosen = {tuple(sorted(pair)) for pair in found.givers.items()}
    assert cost(chosen) == min(map(cost, pairings([f"u{n}" for n in range(len(lengths))])))


def test_one_user_has_nobody_to_exchange_with():
    assert exchange(world([[3, 4]])) is None
    assert exchange(Dataset(task("LaMP_2"), LABELS, ())) is None


def test_items_stay_in_order_and_none_is_later_than_the_question():
    day = datetime(2020, 1, 1)
    late = tuple(HistoryItem(f"b{n}", f"b {n}", "drama", day + timedelta(days=9 - n)) for n in range(3))
    early = Question("1", "a", f"{FRAME}x", (HistoryItem("a0", "a 0", "comedy", day),), "comedy", day)
    dataset = Dataset(task("LaMP_2"), LABELS, (early, Question("2", "b", f"{FRAME}y", late, "drama")))
    given_to_a = exchange(dataset).dataset.questions[0]
    assert [item.id for item in known_items(task("LaMP_2"), given_to_a)] == ["b2", "b1", "b0"]


def test_the_asked_item_is_not_known_from_another_user_either():
    told = (HistoryItem("b0", "x", "drama"), HistoryItem("b1", "y", "comedy"))
    mine = (HistoryItem("a0", "z", "comedy"), HistoryItem("a1", "w", "comedy"))
    dataset = Dataset(
        task("LaMP_2"),
        LABELS,
        (Question("1", "a", f"{FRAME}x", mine, "drama"), Question("2", "b", f"{FRAME}v", told, "drama")),
    )
    asked = exchange(dataset).dataset.questions[0]
    assert [item.id for item in known_items(task("LaMP_2"), asked)] == ["b1"]


def test_the_newest_of_what_is_known_is_asked_by_somebody_new():
    dataset = world([[5], [1]])
    for count, expected in ((0, [[], []]), (2, [["0-3", "0-4"], ["1-0"]]), (9, [list("01234"), ["1-0"]])):
        found = newest(dataset, count)
        ids = [[item.id for item in known_items(task("LaMP_2"), q)] for q in found.questions]
        assert ids[1] == expected[1]
        assert ids[0] == (expected[0] if count < 5 else [f"0-{n}" for n in expected[0]])
        assert not {q.user_id for q in found.questions} & {q.user_id for q in dataset.questions}
        assert len({q.user_id for q in found.questions}) == 2


def test_questions_of_a_user_share_what_they_are_given():
    found = exchange(world([[4, 4, 4], [4]])).dataset.questions
    assert found[0].history is found[1].history
    assert np.all([known_items(task("LaMP_2"), q) is q.history for q in found])
    assert list(itertools.islice((q.user_id for q in found), 4)) == ["u1", "u1", "u1", "u0"]
