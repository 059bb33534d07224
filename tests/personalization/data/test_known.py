"""What may be known when a question is asked."""

import time
from dataclasses import replace
from datetime import datetime, timedelta

import numpy as np
import pytest

from personalization.data.known import distinct, known_items, learned_histories
from personalization.data.records import Dataset, HistoryItem, Question
from personalization.methods.taste.priors import global_counts, history_counts, last_label, most_frequent_label
from personalization.tasks import task

LABELS = ("comedy", "drama")
FRAME = "tags: [comedy, drama] description: "


def item(name, year=None, label="comedy"):
    return HistoryItem(name, name, label, None if year is None else datetime(year, 1, 1))


def question(asked, *history, year=None, name="q", user="u"):
    return Question(name, user, FRAME + asked, history, None, None if year is None else datetime(year, 1, 1))


def names(items):
    return [found.id for found in items]


def test_oldest_first_and_items_without_a_date_before_all_in_the_order_of_the_file():
    asked = question("x", item("c", 2012), item("n1"), item("a", 2010), item("n2"), item("b", 2011))
    assert names(known_items(task("LaMP_2"), asked)) == ["n1", "n2", "a", "b", "c"]


def test_neither_the_asked_item_nor_a_later_one_is_known():
    history = (item("a", 2010), item("asked", 2011), item("b", 2012), item("c", 2013))
    assert names(known_items(task("LaMP_2"), question("asked", *history, year=2012))) == ["a", "b"]
    assert names(known_items(task("LaMP_2"), question(" asked ", *history))) == ["a", "b", "c"]


def test_of_lamp_1_the_title_is_asked_and_a_candidate_reference_is_not():
    text = 'paper with the title "The 5" gap", which reference is related? [1]: "old" [2]: "a "new" one"'
    asked = Question("q", "u", text, tuple(item(name, label=None) for name in ('The 5" gap', "old", 'a "new" one')))
    assert names(known_items(task("LaMP_1"), asked)) == ["old", 'a "new" one']


def test_priors_and_references_do_not_read_the_label_of_what_is_asked():
    asked = question("asked", item("asked", 2012, "drama"), item("later", 2020, "drama"), item("old", 2010), year=2015)
    data = Dataset(task("LaMP_2"), LABELS, (asked,))
    assert history_counts(data).tolist() == [[1, 0]]
    assert global_counts(data).tolist() == [1, 0]
    assert last_label(task("LaMP_2"), asked) == most_frequent_label(task("LaMP_2"), asked) == "comedy"
    assert last_label(task("LaMP_2"), question("asked", item("asked", 2012))) is None


def test_learning_takes_the_longest_known_history_without_what_any_question_asks():
    first = question("one", item("a", 2010), year=2011, name="1")
    second = question("two", item("b", 2012), item("a", 2010), item("one", 2011), item("z", 2030), year=2013, name="2")
    data = Dataset(task("LaMP_2"), LABELS, (first, second, question("x", name="3", user="new")))
    assert {user: names(items) for user, items in learned_histories(data).items()} == {"u": ["a", "b"], "new": []}
    assert history_counts(data).sum(axis=1).tolist() == [1, 3, 0]
    assert global_counts(data).tolist() == [2, 0]


def test_a_changed_question_is_looked_at_anew():
    asked = question("x", item("a", 2010), item("b", 2012))
    assert names(known_items(task("LaMP_2"), asked)) == ["a", "b"]
    assert names(known_items(task("LaMP_2"), replace(asked, date=datetime(2011, 1, 1)))) == ["a"]


def test_equal_histories_are_one():
    one, same, other = (item("a"),), (item("a"),), (item("b"),)
    found, places = distinct([one, other, same, one])
    assert found == [one, other]
    assert places.tolist() == [0, 1, 0, 0]


@pytest.mark.parametrize("shared", [True, False])
def test_thousands_of_questions_with_long_histories_are_asked_at_once(shared):
    """2,000 questions of 1,000 items: some 0.2 s at first, and nothing when asked again."""
    day = datetime(2020, 1, 1)
    items = [HistoryItem(str(i), f"text {i}", LABELS[i % 2], day + timedelta(days=i)) for i in range(1000)]
    history = tuple(items)
    questions = [question("x", *(() if shared else items), name=str(i)) for i in range(2000)]
    questions = [replace(q, history=history) if shared else q for q in questions]
    data = Dataset(task("LaMP_2"), LABELS, tuple(questions))
    history_counts(data)
    started = time.process_time()
    for _ in range(20):
        for q in questions:
            known_items(task("LaMP_2"), q)
    assert time.process_time() - started < 1
    assert (history_counts(data) == np.array([500, 500])).all()
