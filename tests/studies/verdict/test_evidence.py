import json

import optuna
import pytest

from personalization.data.demo.world import make_world
from personalization.data.splits import Splits
from personalization.errors import DataError
from studies.storage import open_storage, storage_url
from studies.verdict.evidence import Evidence
from tracking.detection import spent_alpha


@pytest.fixture(scope="module")
def users():
    """Data sets of single users, none in common."""
    dataset = make_world(0, users=4, questions_per_user=2).dataset
    return [dataset.of_users([user]) for user in dict.fromkeys(q.user_id for q in dataset.questions)]


def both(one, other):
    return type(one)(one.task, one.labels, one.questions + other.questions)


@pytest.fixture
def evidence(tmp_path):
    return Evidence(open_storage(storage_url(tmp_path, None)))


def test_alpha_adds_up_to_its_total():
    assert sum(spent_alpha(0.05, use) for use in range(1, 200_000)) == pytest.approx(0.05, rel=1e-4)


def test_every_earlier_look_at_a_question_counts(evidence, users):
    a, b, c, _ = users
    looks = [evidence.open(study, "s", study, part, 0.05) for study, part in (("1", a), ("2", b), ("3", both(a, b)))]
    assert [look.use for look in looks] == [1, 1, 3]
    assert evidence.open("4", "s", "4", c, 0.05).use == 1
    assert evidence.open("1", "s", "1", a, 0.05).use == 1
    spent_on_a = looks[0].level + looks[2].level
    assert spent_on_a <= 0.05
    assert evidence.next_level(a, 0.05) == pytest.approx(spent_alpha(0.05, 3))


def test_looks_share_the_smallest_alpha_that_was_stated(evidence, users):
    first = evidence.open("1", "s", "1", users[0], 0.05)
    second = evidence.open("2", "s", "2", users[0], 0.9)
    assert second.level == pytest.approx(spent_alpha(0.05, 2))
    assert first.level + second.level <= 0.05


def test_a_large_alpha_leaves_nothing_for_a_small_one(evidence, users):
    evidence.open("1", "s", "1", users[0], 0.9)
    assert evidence.next_level(users[0], 0.05) == 0.0


def test_an_alpha_stated_later_is_granted_what_the_others_left(evidence, users):
    look = evidence.open("1", "s", "1", users[0], 0.05)
    assert evidence.granted(look, 0.01) == pytest.approx(spent_alpha(0.01, 1))
    assert evidence.granted(look, 0.2) == pytest.approx(spent_alpha(0.2, 1))
    assert [line["event"] for line in evidence.lines()] == ["opened", "stated", "stated"]
    assert evidence.next_level(users[0], 0.2) == 0.0  # it was judged at more than the smallest alpha


def test_an_alpha_stated_later_takes_nothing_from_other_looks(evidence, users):
    look = evidence.open("1", "s", "1", users[0], 0.05)
    later = evidence.open("2", "s", "2", users[0], 0.05)
    assert evidence.granted(look, 0.9) <= 0.05 - later.level + 1e-12


def test_what_a_look_gave_is_read_in_another_process_order(evidence, users, tmp_path):
    look = evidence.open("1", "s", "one", users[0], 0.05)
    evidence.open("2", "s", "two", users[1], 0.05)
    evidence.close(look, {"p": 0.01}, 0.2)
    again = Evidence(open_storage(storage_url(tmp_path, None)))
    assert again.look("1", "s").found == {"p": 0.01}
    assert again.look("2", "s").found is None
    trials = optuna.load_study(study_name="chamtune.looks", storage=open_storage(storage_url(tmp_path, None))).trials
    assert [t.number for t in trials] == [0, 1, 2]


def test_trials_of_a_study_that_was_called_like_the_evidence_are_none(users, tmp_path):
    storage = open_storage(storage_url(tmp_path, None))
    study = optuna.create_study(storage=storage, study_name="chamtune.looks", directions=["maximize", "minimize"])
    study.add_trial(optuna.create_trial(values=[1, 2], user_attrs={"line": 3}))
    study.ask()
    evidence = Evidence(storage)
    assert evidence.looks() == []
    evidence.close(evidence.open("1", "s", "one", users[0], 0.05), {"p": 0.01}, 0.2)
    assert [look.found for look in evidence.looks()] == [{"p": 0.01}]


def test_users_that_were_chosen_by_are_known(evidence, users):
    splits = Splits(users[0], users[1], users[2])
    for _ in range(2):
        evidence.note_roles("1", "first", splits)
    assert [line["event"] for line in evidence.lines()] == ["roles"]
    assert evidence.chosen_by(users[2], "2") == {}
    assert evidence.chosen_by(both(users[0], users[3]), "2") == {"tune": {"first": 1}}
    assert evidence.chosen_by(users[1], "2") == {"select": {"first": 1}}
    assert evidence.chosen_by(users[1], "1") == {}  # a study is no other one


def test_the_ledger_file_of_earlier_versions_counts(evidence, users, tmp_path):
    from studies.verdict.evidence import question_digests

    old = {"event": "opened", "state": "x", "study": "s", "use": 1, "questions": sorted(question_digests(users[0]))}
    (tmp_path / "ledger.jsonl").write_text(json.dumps(old) + '\n{"event": "closed", "state": "x", "result": {}}\n')
    evidence.take_over(tmp_path)
    evidence.take_over(tmp_path)
    assert evidence.open("1", "s", "1", users[0], 0.05).use == 2
    (tmp_path / "ledger.jsonl").write_text('{"event": "opened"')
    with pytest.raises(DataError, match="record 1"):
        evidence.take_over(tmp_path)
