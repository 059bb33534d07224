"""Other users' items: what counts for a question, by hand; nothing of the asked user, nothing from later."""

import time
from dataclasses import replace
from datetime import datetime
from types import SimpleNamespace

import numpy as np
import pytest

from personalization.data.records import Dataset, HistoryItem, Question
from personalization.errors import DataError
from personalization.methods.history.pool import MOST, Pool, alike, digest, pooled
from personalization.tasks import task

TASK = task("LaMP_2")
LABELS = ("a", "b", "c")


def params(**values):
    return SimpleNamespace(**{"floor": 0.5, "near": 0.1, "kin": 0.0, **values})


def item(text, label, date=None):
    return HistoryItem(text, text, label, date)


def question(user, text, history=(), date=None):
    return Question(f"{user}/{text}", user, text, tuple(history), None, date)


def data(*questions):
    return Dataset(TASK, LABELS, questions)


PEOPLE = data(
    question("ann", "x", [item("red fish swims", "a"), item("green tree", "b")]),
    question("bob", "x", [item("red fish swims", "b"), item("blue sea", "c")]),
    question("cat", "x", [item("red fish swims", "b"), item("blue sea", "b")]),
)


def unused(_texts):
    raise AssertionError


def test_the_same_text_counts_as_one_item_of_each_other_user():
    pool = pooled(PEOPLE, "causal", unused)
    counts = pool.counts(data(question("dan", "red fish swims")), unused, params())
    assert counts == pytest.approx(np.array([[1, 2, 0]]))


def test_the_asked_user_s_own_items_do_not_count():
    pool = pooled(PEOPLE, "causal", unused)
    counts = pool.counts(data(question("ann", "red fish swims")), unused, params())
    assert counts == pytest.approx(np.array([[0, 2, 0]]))


def test_what_is_later_than_the_question_does_not_count():
    early, late = datetime(2020, 1, 1), datetime(2022, 1, 1)
    people = data(
        question("ann", "x", [item("red fish", "a", early)]), question("bob", "x", [item("red fish", "b", late)])
    )
    pool = pooled(people, "causal", unused)
    asked = question("dan", "red fish", date=datetime(2021, 1, 1))
    assert pool.counts(data(asked), unused, params()) == pytest.approx(np.array([[1, 0, 0]]))
    assert pool.counts(data(replace(asked, date=None)), unused, params()) == pytest.approx(np.array([[1, 1, 0]]))


def test_farther_items_count_less_and_below_the_floor_not_at_all():
    vectors = {"q": [1, 0], "same": [1, 0], "near": [0.8, 0.6], "far": [0.4, 0.9165]}

    def embed(texts):
        return np.array([vectors[text] for text in texts], dtype=np.float32)

    people = data(question("ann", "x", [item("same", "a"), item("near", "b"), item("far", "c")]))
    pool = pooled(people, "encoder", embed)
    counts = pool.counts(data(question("dan", "q")), embed, params(near=0.2))
    assert counts == pytest.approx(np.array([[1, np.exp(-0.2 / 0.2), 0]]), rel=1e-5)


def test_users_of_like_taste_count_more():
    pool = pooled(PEOPLE, "causal", unused)
    asked = question("dan", "red fish swims", [item("one", "b"), item("two", "b")])
    plain = pool.counts(data(asked), unused, params())[0]
    kin = pool.counts(data(asked), unused, params(kin=4.0))[0]
    assert kin[0] / plain[0] < kin[1] / plain[1] < 1
    own, other = np.array([[0, 2, 0]]), np.array([[1, 1, 0]])
    by_hand = sum(np.sqrt((a + 1 / 3) / 3 * (b + 1 / 3) / 3) for a, b in zip(own[0], other[0], strict=True))
    assert alike(own, other)[0, 0] == pytest.approx(by_hand)
    assert alike(own, own)[0, 0] == pytest.approx(1)


def test_no_more_than_so_many_items_answer():
    people = data(*(question(f"u{i}", "x", [item("red fish", "a")]) for i in range(MOST + 20)))
    pool = pooled(people, "causal", unused)
    assert pool.counts(data(question("dan", "red fish")), unused, params())[0, 0] == pytest.approx(MOST)


def test_items_that_tie_with_the_last_share_its_places_in_any_company():
    random = np.random.default_rng(1)
    vectors = {f"t{n}": random.normal(size=24) for n in range(80)}
    vectors = {text: (one / np.linalg.norm(one)).astype(np.float32) for text, one in vectors.items()}

    def embed(texts):
        return np.stack([vectors[text] for text in texts])

    items = [(f"t{n % 40}", LABELS[n % 3]) for n in range(3001)]
    pool = pooled(data(*(question(f"u{n}", "t79", [item(*one)]) for n, one in enumerate(items))), "encoder", embed)
    asked = data(*(question("dan", f"t{n}") for n in range(79)))
    together = pool.counts(asked, embed, params(floor=0.1, near=1.0))
    alone = [pool.counts(data(one), embed, params(floor=0.1, near=1.0))[0] for one in asked.questions]
    assert np.abs(together - alone).max() <= 1e-5
    assert together[:40].sum(axis=1) == pytest.approx(MOST, rel=1e-5)  # the text itself: 75 items or more, all at 1
    by_hand = [sum(at % 40 == 0 and at % 3 == label for at in range(3001)) for label in range(3)]
    assert together[0] == pytest.approx(MOST * np.array(by_hand) / sum(by_hand), rel=1e-5)


def test_an_item_at_the_floor_counts_whatever_its_last_bits():
    pool, floor = pooled(PEOPLE, "causal", unused), 1.0
    near = np.array([floor, floor - 1e-7, floor + 1e-7, floor - 1e-3, 0, 0])
    counted = pool._counted(near, np.zeros(3, dtype=np.int64), params(floor=floor))
    assert counted == pytest.approx([1, 2 - 1e-6, 0], abs=1e-5)


@pytest.mark.parametrize("zone", ["America/New_York", "Asia/Tokyo"])
def test_a_pool_is_the_same_in_every_time_zone(tmp_path, monkeypatch, zone):
    first, then = datetime(2021, 11, 7, 0, 30), datetime(2021, 11, 7, 6, 15)
    people = data(
        question("ann", "x", [item("red fish", "a", first)]), question("bob", "x", [item("red fish", "b", then)])
    )
    pooled(people, "causal", unused).save(tmp_path)
    asked = data(question("dan", "red fish", date=datetime(2021, 11, 7, 5, 45)))
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    try:
        pool = Pool.load(tmp_path)
        assert np.array_equal(pool.days, pooled(people, "causal", unused).days)
        assert pool.counts(asked, unused, params()) == pytest.approx(np.array([[1, 0, 0]]))
    finally:
        monkeypatch.undo()
        time.tzset()


@pytest.mark.parametrize("kind", ["causal", "encoder"])
def test_it_is_the_same_from_a_folder_and_has_no_names(tmp_path, kind):
    def embed(texts):
        random = [np.random.default_rng(sum(text.encode())).normal(size=4) for text in texts]
        return np.array([one / np.linalg.norm(one) for one in random], dtype=np.float32)

    pool = pooled(PEOPLE, kind, embed)
    pool.save(tmp_path)
    again = Pool.load(tmp_path)
    asked = data(question("dan", "red fish swims"), question("bob", "blue sea"))
    assert np.array_equal(pool.counts(asked, embed, params()), again.counts(asked, embed, params()))
    assert again.bytes == pool.bytes > 0
    told = (tmp_path / "pool.json").read_text()
    assert digest("ann") in told
    assert "ann" not in told.replace(digest("ann"), "")
    assert ("red fish" in told) == (kind == "causal")


def test_texts_that_are_missing_are_said(tmp_path):
    pooled(PEOPLE, "causal", unused).save(tmp_path)
    (tmp_path / "pool.json").write_text('{"users": [], "texts": ["one"]}')
    with pytest.raises(DataError, match="1 texts for 6 items"):
        Pool.load(tmp_path)
