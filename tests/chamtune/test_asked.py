"""Tables that a deployment is asked, and arguments that cannot be meant."""

from datetime import datetime
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

import chamtune as ct
from chamtune.asked import questions_of
from personalization.errors import DataError, UsageError
from personalization.tasks import Task, Terms, task

TERMS = Terms(Task(name="own", prompt="{{text}}"), ("red", "1"))
HISTORY = [{"text": "a", "label": "red", "date": "2020-01-01"}, {"text": "b", "label": 1.0}]


def asked(terms=TERMS, **row):
    (question,) = questions_of(pd.DataFrame([{"text": "t", **row}]), terms)
    return question


def test_a_history_is_any_sequence(tmp_path):
    expected = asked(history=HISTORY).history
    assert [(item.text, item.label, item.date) for item in expected] == [
        ("a", "red", datetime(2020, 1, 1)),
        ("b", "1", None),
    ]
    assert asked(history=tuple(HISTORY)).history == expected
    assert asked(history=np.array(HISTORY, dtype=object)).history == expected
    rows = [{**item, "label": str(item["label"])} for item in HISTORY]
    pd.DataFrame([{"text": "t", "history": rows}]).to_parquet(tmp_path / "h.parquet")
    (question,) = questions_of(pd.read_parquet(tmp_path / "h.parquet"), TERMS)
    assert question.history == expected
    assert asked(history=None).history == asked(history=float("nan")).history == asked().history == ()


def test_a_row_without_a_name_is_a_user_of_its_own():
    frame = pd.DataFrame({"text": ["t", "t"], "user": ["anyone", None], "id": [7.0, None], "date": ["2020", None]})
    first, second = questions_of(frame, TERMS)
    assert (first.user_id, first.id, first.date) == ("anyone", "7", datetime(2020, 1, 1))
    assert (second.user_id, second.id, second.date) == ("anonymous 2", "1", None)
    assert questions_of(frame[:0], TERMS) == []
    assert [one.id for one in questions_of(pd.DataFrame({"text": ["t", "u"], "id": ["x", "x"]}), TERMS)] == ["x", "x"]


def test_items_of_a_task_have_the_fields_of_its_wording():
    labels = ("comedy", "action")
    question = asked(Terms(task("LaMP_2"), labels), text="a duel", history=[{"text": "b", "label": "action"}])
    assert question.text.endswith("description: a duel")
    assert question.history[0].label == "action"


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"history": "[]"}, "record 1: history: a str, must be a list of mappings with text and label"),
        ({"history": {"text": ["a"], "label": ["red"]}}, "record 1: history: a dict, must be a list of mappings"),
        ({"history": ["a"]}, r"record 1: history\[0\]: a str, must be a mapping with text and label"),
        ({"history": [HISTORY[0], {"text": "a"}]}, r"record 1: history\[1\].label: missing"),
        ({"text": float("nan")}, "record 1: text: missing"),
        ({"text": " "}, "record 1: text: empty"),
        ({"text": "\0"}, "record 1: text: holds a null byte"),
    ],
)
def test_what_cannot_be_read_is_refused_by_row(row, said):
    with pytest.raises(DataError, match=said):
        asked(**row)


def test_what_counts_for_nothing_is_said(caplog):
    asked(history=[{"text": "a", "label": "Red"}], date="2019", user="u")
    asked(history=HISTORY, date="2019")
    assert "NONE of the 1 history labels is among the labels" in caplog.text
    assert "have history items later than their own date" in caplog.text


def test_what_is_no_table_is_one_line():
    served = ct.Served(SimpleNamespace(terms=TERMS, predict=list))
    for given in (["a"], "a", pd.Series(["a"]), 3):
        with pytest.raises(UsageError, match="question 1 is a .*; give Questions, a Dataset, or a table with text"):
            served.predict(given)
    with pytest.raises(UsageError, match="the table has 2 columns 'text'; rename or drop all but one"):
        served.predict(pd.DataFrame([["a", "b"]], columns=["text", "text"]))
    with pytest.raises(UsageError, match="the table has no column 'text'; it has body"):
        served.predict(pd.DataFrame({"body": ["a"]}))


ROWS = pd.DataFrame({"user": list("aabb"), "text": list("wxyz"), "label": [True, False, None, True]})


@pytest.mark.parametrize(
    ("frame", "changes", "said"),
    [
        ([1], {}, "the table must be a pandas DataFrame, and is a list"),
        (None, {}, "the table must be a pandas DataFrame, and is a NoneType"),
        (ROWS, {"newest": "a"}, "data.newest: Input should be a valid integer"),
        (ROWS, {"newest": 0}, "data.newest: Input should be greater than or equal to 1, but got 0"),
        (ROWS, {"newest": -1}, "data.newest: Input should be greater than or equal to 1, but got -1"),
        (ROWS, {"text": 0}, "data.text.*but got 0"),
        (pd.concat([ROWS, ROWS[["label"]]], axis=1), {}, "the table has 2 columns 'label'"),
    ],
)
def test_a_table_that_cannot_be_meant_is_one_line(frame, changes, said):
    with pytest.raises(UsageError, match=said):
        ct.Dataset.from_frame(frame, **changes)


@pytest.mark.parametrize("kind", [object, "boolean"])
def test_truth_values_are_labels(kind):
    data = ct.Dataset.from_frame(ROWS.astype({"label": kind}))
    assert data.records.labels == ("False", "True")


@pytest.mark.parametrize("trials", [0, "many"])
def test_a_number_of_trials_that_cannot_be_meant_is_one_line(tmp_path, trials):
    study = ct.Study({"name": "s", "data": "demo", "model": "demo"}, home=tmp_path)
    with pytest.raises(UsageError, match="run: trials: Input should be"):
        study.run(trials=trials)


def test_insights_take_what_is_not_finite_for_missing():
    frame = pd.DataFrame({"a": [1, 2] * 10, "b": [float("-inf"), 0.5] * 10, "v": [float("inf"), *range(19)]})
    found = ct.insights(frame=frame, value="v")
    assert found["scores"]["count"].max() < 20
    with pytest.raises(UsageError, match="the frame has 2 columns 'a'"):
        ct.insights(frame=pd.concat([frame, frame[["a"]]], axis=1), value="v")
