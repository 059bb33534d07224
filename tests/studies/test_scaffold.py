"""`init`: which column is what, and files that a study starts from."""

import json
from pathlib import Path

import pandas as pd
import pytest
import yaml

from personalization.errors import UsageError
from personalization.tasks import load_task
from studies.auto.plan import data_of
from studies.data import read_data
from studies.scaffold import begin
from studies.spec import load_spec
from tests.tickets import GERMAN, JAPANESE, tickets

NONE: dict[str, None] = dict.fromkeys(("user", "text", "label", "time"))


@pytest.mark.parametrize(("language", "suffix"), [(GERMAN, "csv"), (JAPANESE, "parquet")])
def test_columns_are_told_by_what_stands_in_them(tmp_path, monkeypatch, language, suffix):
    monkeypatch.chdir(tmp_path)
    frame = pd.DataFrame(tickets(language, 20, 12))
    frame.to_csv("tickets.csv", index=False) if suffix == "csv" else frame.to_parquet("tickets.parquet")
    found = begin(f"tickets.{suffix}", NONE, tmp_path)
    number, who, when, what, where = language["columns"]
    assert found["columns"] == {"user": who, "text": (what,), "label": where, "time": when, "id": number}
    assert (found["rows"], found["users"], len(found["labels"])) == (240, 20, 6)
    spec = load_spec(found["spec"])
    splits = read_data(spec).splits()
    assert len({q.user_id for part in (splits.tune, splits.select, splits.confirm) for q in part.questions}) == 20
    assert set(splits.tune.labels) == set(language["queues"])
    prompt = spec.task.prompt_of("TEXT", splits.tune.questions[0].history[:1])
    assert prompt.endswith(f"\n\nTEXT\n{where}:")
    assert splits.tune.questions[0].history[0].text in prompt
    assert yaml.safe_load(Path(found["task"]).read_text(encoding="utf-8"))["labels"]


def test_who_knows_better_names_them(tmp_path):
    pd.DataFrame(tickets(GERMAN, 20, 12)).to_csv(tmp_path / "t.csv", index=False)
    found = begin(str(tmp_path / "t.csv"), {**NONE, "user": "warteschlange", "label": "kunde"}, tmp_path, "odd")
    assert (found["columns"]["user"], found["columns"]["label"]) == ("warteschlange", "kunde")
    assert found["spec"].endswith("odd.yaml")
    with pytest.raises(UsageError, match="is there already; give another --name"):
        begin(str(tmp_path / "t.csv"), NONE, tmp_path, "odd")
    with pytest.raises(UsageError, match="there is no column 'queue'; there are ticket, kunde"):
        begin(str(tmp_path / "t.csv"), {**NONE, "label": "queue"}, tmp_path, "new")


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (
            [{"a": f"text {i}", "b": f"{i}"} for i in range(9)],
            "not clear which column is the user; say so with --user",
        ),
        ([{"a": f"text {i}", "b": "xy"[i % 2]} for i in range(9)], "not clear which column is the user"),
    ],
)
def test_what_is_not_clear_is_asked_for(tmp_path, rows, said):
    pd.DataFrame(rows).to_csv(tmp_path / "t.csv", index=False)
    with pytest.raises(UsageError, match=said):
        begin(str(tmp_path / "t.csv"), NONE, tmp_path)


def items(users, labels, names=("user", "text", "label", "time")):
    """Rows of a table with so many users, each with eight rows, and labels."""
    return [
        dict(zip(names, (f"u{u}", f"what {i} of {u} says", f"a label {(8 * u + i) % labels}", day), strict=True))
        for u in range(users)
        for i, day in enumerate(f"2020-01-0{day}" for day in range(1, 9))
    ]


CALLED = [("user", "text", "label", "time"), ("Customer-ID", "Message", "category", "created_at")]


@pytest.mark.parametrize(("users", "labels"), [(2, 3), (60, 200), (20, 6)])
def test_a_column_is_what_its_name_says(tmp_path, users, labels):
    for place, names in enumerate(CALLED):
        pd.DataFrame(items(users, labels, names)).to_csv(tmp_path / "t.csv", index=False)
        found = begin(str(tmp_path / "t.csv"), NONE, tmp_path, f"study{place}")["columns"]
        assert (found["user"], found["text"], found["label"], found["time"]) == (names[0], (names[1],), *names[2:])


def test_a_named_time_is_one_with_some_dates_that_cannot_be_read(tmp_path):
    rows = [{**row, "time": "garbage" if place % 6 == 0 else row["time"]} for place, row in enumerate(items(12, 3))]
    pd.DataFrame(rows).to_csv(tmp_path / "t.csv", index=False)
    found = begin(str(tmp_path / "t.csv"), NONE, tmp_path)["columns"]
    assert (found["user"], found["time"]) == ("user", "time")


@pytest.mark.parametrize(("users", "labels"), [(2, 3), (20, 15), (300, 60)])
def test_numbers_of_values_that_do_not_tell_label_and_user_apart_are_said(tmp_path, users, labels):
    pd.DataFrame(items(users, labels, "abcd")).to_csv(tmp_path / "t.csv", index=False)
    with pytest.raises(UsageError, match="the label and which the user; say so with --label and --user") as said:
        begin(str(tmp_path / "t.csv"), NONE, tmp_path)
    assert f"a ({users}), b ({8 * users}), c ({labels}), d (8)" in str(said.value)
    with pytest.raises(UsageError, match="`chamtune init .*t.csv` takes them, and --data the spec"):
        data_of(str(tmp_path / "t.csv"), tmp_path)
    found = begin(str(tmp_path / "t.csv"), {**NONE, "user": "a", "label": "c"}, tmp_path)
    assert found["columns"]["label"] == "c"


def test_one_label_is_no_study(tmp_path):
    pd.DataFrame(items(12, 1)).to_csv(tmp_path / "t.csv", index=False)
    with pytest.raises(UsageError, match="column 'label' holds fewer than two different labels"):
        begin(str(tmp_path / "t.csv"), NONE, tmp_path)


def test_a_label_that_is_missing_is_none(tmp_path):
    rows = items(12, 3)
    for place, row in enumerate(rows):
        row["label"] = float("nan") if place % 5 == 0 else place % 2 == 0
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert sorted(begin(str(tmp_path / "t.jsonl"), NONE, tmp_path)["labels"]) == ["False", "True"]


def test_labels_that_look_like_numbers_stay_texts(tmp_path):
    rows = "".join(f"u{place % 5},text {place},{('1e5', '2e-7')[place % 2]}\n" for place in range(20))
    (tmp_path / "codes.csv").write_text(f"user,text,label\n{rows}")
    found = begin(str(tmp_path / "codes.csv"), {}, tmp_path)
    assert dict(load_task(found["task"]).labels) == {"1e5": "1e5", "2e-7": "2e-7"}


def test_a_name_that_no_study_can_have_is_refused_before_a_file_is_written(tmp_path):
    pd.DataFrame(items(12, 3)).to_csv(tmp_path / "t.csv", index=False)
    with pytest.raises(UsageError, match=r"no study can be called '../evil'"):
        begin(str(tmp_path / "t.csv"), NONE, tmp_path / "out", "../evil")
    with pytest.raises(UsageError, match=r"no study can be called '../evil'"):
        data_of(str(tmp_path / "t.csv"), tmp_path, "../evil")
    assert [path.name for path in tmp_path.iterdir()] == ["t.csv"]
