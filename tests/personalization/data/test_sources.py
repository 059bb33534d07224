"""From files to parts, as a study and a check read them."""

import json
from dataclasses import replace
from datetime import datetime

import pytest

from personalization.data.demo.world import make_world
from personalization.data.lamp import write_dataset
from personalization.data.records import Dataset
from personalization.data.sources import read_source
from personalization.errors import DataError
from personalization.methods.taste.priors import most_frequent_label
from tracking.data_report import check
from tracking.detection import detectable_difference


def some(users, questions):
    """The same users whatever the questions."""
    return Dataset(users.task, users.labels, tuple(questions))


@pytest.fixture
def world():
    return make_world(2, users=12, questions_per_user=4).dataset


def numbered(dataset):
    return some(dataset, [replace(q, id=str(number)) for number, q in enumerate(dataset.questions)])


def test_train_and_dev_files_may_number_their_questions_alike(tmp_path, world):
    users = sorted({q.user_id for q in world.questions})
    write_dataset(tmp_path, "train", numbered(world.of_users(users[:8])))
    write_dataset(tmp_path, "dev", numbered(world.of_users(users[8:])))
    splits = read_source(tmp_path, "files").splits()
    assert {q.user_id for q in splits.confirm.questions} == set(users[8:])
    report = check(lambda: read_source(tmp_path))
    assert (report["usable"], report["split"], report["confirm_questions"]) == (True, "files", 16)
    assert (report["questions"], report["users"]) == (48, 12)
    as_one = check(lambda: read_source(tmp_path, "users"))
    assert not as_one["usable"]
    assert "16 records, first record 1: id: '0' stands already in" in as_one["defects"][0]["text"]
    with pytest.raises(DataError, match="stands already in"):
        read_source(tmp_path, "users").splits()


def test_users_in_train_and_dev_are_known_users_with_new_questions(tmp_path, world):
    write_dataset(tmp_path, "train", some(world, world.questions[::2]))
    write_dataset(tmp_path, "dev", some(world, world.questions[1::2]))
    report = check(lambda: read_source(tmp_path))
    assert not report["usable"]
    assert "take split: time for known users" in report["defects"][-1]["text"]
    with pytest.raises(DataError, match="take split: time for known users"):
        read_source(tmp_path, "files").splits()
    splits = read_source(tmp_path, "time").splits()
    tune, select, confirm = ({q.user_id for q in splits.part(p).questions} for p in ("tune", "select", "confirm"))
    assert (tune | select, tune & select) == (confirm, set())
    assert splits.new_users == select
    timed = check(lambda: read_source(tmp_path, "time"))
    assert (timed["usable"], timed["confirm_questions"], timed["new_confirm_users"]) == (True, 24, len(select))
    assert check(lambda: read_source(tmp_path, "users"))["usable"]


def test_one_set_is_split_by_the_dates_of_its_questions(tmp_path, world):
    dated = [replace(q, date=datetime(2030, 1, 1 + number % 4)) for number, q in enumerate(world.questions)]
    write_dataset(tmp_path, "all", some(world, dated))
    shares = {"tune": 0.5, "select": 0.2, "confirm": 0.3}
    splits = replace(read_source(tmp_path, "time"), shares=shares).splits()
    assert {q.date.day for q in splits.tune.questions} == {1, 2}
    assert {q.date.day for q in splits.confirm.questions} == {4}
    assert check(lambda: read_source(tmp_path))["split"] == "users"


def test_what_a_study_would_refuse_is_unusable(tmp_path, world):
    write_dataset(tmp_path, "few", world.of_users([world.questions[0].user_id]))
    assert "has no questions; give more users" in check(lambda: read_source(tmp_path))["defects"][-1]["text"]
    assert not check(lambda: read_source(tmp_path))["usable"]
    assert (
        "split: files needs one train_questions.json"
        in check(lambda: read_source(tmp_path, "files"))["defects"][0]["text"]
    )
    path = tmp_path / "few_questions.json"
    path.write_text(json.dumps(json.loads(path.read_text())[:1]))
    (tmp_path / "few_outputs.json").unlink()
    assert check(lambda: read_source(path))["usable"]


def golden(dataset, right):
    """Questions of which the guess from the history is right where `right` says so of (question's number, user)."""
    asked = []
    for number, question in enumerate(dataset.questions):
        guess = most_frequent_label(dataset.task, question)
        wrong = next(label for label in dataset.labels if label != guess)
        asked.append(replace(question, gold=guess if right(number, question.user_id) else wrong))
    return some(dataset, asked)


def test_questions_that_are_alike_within_users_are_worth_their_users(tmp_path):
    dataset = make_world(4, users=110, questions_per_user=4).dataset
    users = list(dict.fromkeys(q.user_id for q in dataset.questions))
    even = golden(dataset, lambda _, user: users.index(user) % 2)
    write_dataset(tmp_path, "train", even.of_users(users[:10]))
    write_dataset(tmp_path, "dev", even.of_users(users[10:]))
    report = check(lambda: read_source(tmp_path))
    assert (report["confirm_questions"], report["confirm_users"]) == (400, 100)
    assert report["questions_worth"] == pytest.approx(100)
    assert report["detectable_difference"] > detectable_difference(200)


def test_users_who_are_too_few_can_show_nothing_whatever_they_ask(tmp_path, world, command):
    users = list(dict.fromkeys(q.user_id for q in world.questions))
    write_dataset(tmp_path, "train", world.of_users(users[5:]))
    dev = world.of_users(users[:5])
    often = [replace(q, id=f"{q.id} {time}") for q in dev.questions for time in range(25)]
    write_dataset(tmp_path, "dev", golden(some(dev, often), lambda number, _: number % 2))
    report = check(lambda: read_source(tmp_path))
    assert (report["usable"], report["confirm_users"]) == (True, 5)
    assert detectable_difference(report["questions_worth"]) is not None
    assert report["detectable_difference"] is None
    code, out, _ = command("data", "check", tmp_path)
    assert (code, " 500 confirm questions of 5 users " in " ".join(out.split())) == (0, True)
    assert out.rstrip().endswith(": none")
