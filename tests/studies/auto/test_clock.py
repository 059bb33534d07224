"""Minutes over several runs, and the end of what runs too long."""

import json
import time

import pytest

from personalization.errors import DataError
from studies.auto.clock import Journal, TimeUp, ended_after


class Hands:
    def __init__(self):
        self.at = 100.0

    def __call__(self):
        return self.at


def test_only_running_time_counts(tmp_path):
    hands = Hands()
    journal = Journal(tmp_path / "j.json", hands)
    hands.at += 7
    journal.arm("a")["slices"].append({"trials": 1, "seconds": 7})
    journal.note()
    hands.at += 1000
    again = Journal(tmp_path / "j.json", hands)
    assert again.spent_s == 7
    assert again.arm("a")["slices"] == [{"trials": 1, "seconds": 7}]
    hands.at += 1
    assert again.spent_s == 8


def test_what_is_spent_is_noted_by_itself_and_nothing_that_is_not_to_be_noted_yet(tmp_path, monkeypatch):
    monkeypatch.setattr("studies.auto.clock.NOTED_S", 0.001)
    hands = Hands()
    journal = Journal(tmp_path / "j.json", hands)
    journal.note()
    with journal.ticking():
        journal.arm("a")
        hands.at += 3
        while (found := json.loads(journal.path.read_text()))["spent_s"] != 3:
            time.sleep(0.001)
    assert found["arms"] == {}
    hands.at += 1
    time.sleep(0.01)
    assert json.loads(journal.path.read_text())["spent_s"] == 3


def test_a_torn_journal_is_a_line(tmp_path):
    (tmp_path / "j.json").write_text("{")
    with pytest.raises(DataError, match="take it away"):
        Journal(tmp_path / "j.json")


def test_what_runs_too_long_is_ended():
    with pytest.raises(TimeUp), ended_after(0.05):
        time.sleep(5)
    with ended_after(0.05):
        pass
    time.sleep(0.1)


def test_a_block_in_a_block_hands_the_time_back():
    with pytest.raises(TimeUp), ended_after(0.3):
        _wait_within()


def _wait_within():
    with ended_after(5):
        time.sleep(0.05)
    time.sleep(5)
