"""Tables with a row an item: formats, order, what is known, and every defect."""

import csv
import json
from datetime import datetime
from decimal import Decimal

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from personalization.data.known import known_items
from personalization.data.table import Columns, read_table, rows_as_questions, table_rows, write_table
from personalization.data.values import plain
from personalization.errors import DataError
from personalization.tasks import Terms
from tests.tickets import GERMAN, JAPANESE, tickets

COLUMNS = Columns("kunde", ("anfrage",), "warteschlange", "eingang", "ticket")


def written(folder, suffix, rows, separator=";"):
    path = folder / f"tickets{suffix}"
    frame = pd.DataFrame(rows)
    if suffix in (".csv", ".tsv"):
        with path.open("w", encoding="utf-8-sig", newline="") as file:
            table = csv.DictWriter(file, list(rows[0]), delimiter="\t" if suffix == ".tsv" else separator)
            table.writeheader()
            table.writerows(rows)
    elif suffix == ".jsonl":
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    elif suffix == ".parquet":
        frame.to_parquet(path)
    else:
        frame.to_feather(path)
    return str(path)


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet", ".arrow", ".feather"])
def test_every_format_gives_the_same_questions(tmp_path, suffix):
    rows = tickets(GERMAN, customers=4, each=6)
    expected = rows_as_questions(iter(rows), "memory", COLUMNS, None).usable()
    found = read_table(written(tmp_path, suffix, rows), COLUMNS).usable()
    assert found.fingerprint() == expected.fingerprint()
    assert len(found) == 4 * 3


def test_a_folder_that_datasets_saved_is_a_table(tmp_path):
    import datasets

    rows = tickets(JAPANESE, customers=3, each=4)
    datasets.Dataset.from_list(rows).save_to_disk(str(tmp_path / "saved"))
    columns = Columns("顧客", ("本文",), "窓口", "受付日", "番号")
    found = read_table(str(tmp_path / "saved"), columns).usable()
    assert found.fingerprint() == rows_as_questions(iter(rows), "memory", columns, None).usable().fingerprint()


def test_the_newest_rows_are_asked_and_nothing_later_is_known():
    found = rows_as_questions(iter(tickets(GERMAN, 5, 8)), "memory", COLUMNS, None).usable()
    assert len(found) == 5 * 4
    for question in found.questions:
        known = known_items(found.task, question)
        assert all(item.date <= question.date for item in known)
        assert [item.date for item in known] == sorted(item.date for item in known)
    last = {q.user_id: q for q in sorted(found.questions, key=lambda q: q.date)}
    assert all(len(q.history) == 7 for q in last.values())


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 5), st.sampled_from("ab")), min_size=1, max_size=40))
def test_order_of_rows_of_other_times_changes_nothing(drawn):
    rows = [{"u": u, "x": f"text {i}", "y": y, "t": 2000 + t, "id": i} for i, (u, t, y) in enumerate(drawn)]
    columns = Columns("u", ("x",), "y", "t", "id")
    found = rows_as_questions(iter(rows), "memory", columns, None)
    turned = rows_as_questions(iter(sorted(rows, key=lambda row: -row["t"])), "memory", columns, None)
    asked = {(q.id, q.date, q.gold) for q in found.dataset.questions}
    by_user = {u: sum(row["u"] == u for row in rows) for u, _, _ in drawn}
    assert len(asked) == sum(min(5, (count + 1) // 2) for count in by_user.values())
    if len({(row["u"], row["t"]) for row in rows}) == len(rows):
        assert asked == {(q.id, q.date, q.gold) for q in turned.dataset.questions}
        assert {(q.id, len(q.history)) for q in found.dataset.questions} == {
            (q.id, len(q.history)) for q in turned.dataset.questions
        }


def test_without_a_time_rows_are_oldest_first_and_ids_are_row_numbers():
    rows = [{"u": "a", "x": f"t{i}", "y": "pq"[i % 2]} for i in range(4)]
    found = rows_as_questions(iter(rows), "memory", Columns("u", ("x",), "y", newest=1), None).usable()
    (question,) = found.questions
    assert (question.id, [item.text for item in question.history]) == ("4", ["t0", "t1", "t2"])


def test_several_columns_of_text_stand_one_below_the_other():
    rows = [{"u": "a", "subject": "Hi", "body": "there", "y": "pq"[i % 2]} for i in range(2)]
    found = rows_as_questions(iter(rows), "memory", Columns("u", ("subject", "body"), "y"), None).usable()
    assert found.questions[0].text == "Hi\nthere"


def test_a_deployment_answers_the_rows_without_a_label():
    rows = tickets(GERMAN, 3, 6)
    labels = tuple(sorted({row["warteschlange"] for row in rows}))
    task = rows_as_questions(iter(rows), "memory", COLUMNS, None).usable().task
    empty = [{**row, "warteschlange": ""} if place % 5 == 0 else row for place, row in enumerate(rows)]
    found = rows_as_questions(iter(empty), "memory", COLUMNS, None, Terms(task, labels)).usable()
    assert {q.id for q in found.questions} == {row["ticket"] for row in rows[::5]}
    for question in found.questions:
        assert question.gold is None
        assert all(item.label and item.date <= question.date for item in question.history)
    whole = rows_as_questions(iter(rows), "memory", COLUMNS, None, Terms(task, labels)).usable()
    assert len(whole) == 9


def test_of_a_row_without_time_and_label_all_dated_rows_are_known():
    rows = [{"u": "a", "x": f"t{i}", "y": "pq"[i % 2], "t": 2000 + i if i else None} for i in range(4)]
    task = rows_as_questions(iter(rows), "memory", Columns("u", ("x",), "y", "t"), None).usable().task
    asked = [{"u": "a", "x": "new", "y": None, "t": None}, *rows, {"u": "a", "x": "newer", "y": None, "t": None}]
    found = rows_as_questions(iter(asked), "memory", Columns("u", ("x",), "y", "t"), None, Terms(task, ("p", "q")))
    known = {q.text: [item.text for item in q.history] for q in found.usable().questions}
    assert known == {"new": ["t1", "t2", "t3"], "newer": ["t0", "t1", "t2", "t3"]}


def test_rows_without_a_label_teach_nothing_and_are_counted():
    rows = tickets(GERMAN, 3, 6)
    checked = rows_as_questions(
        ({**row, "warteschlange": None if i < 2 else row["warteschlange"]} for i, row in enumerate(rows)),
        "memory",
        COLUMNS,
        None,
    )
    assert any("2 rows have no label and are left out" in str(defect) for defect in checked.defects)
    assert sum(len(q.history) >= 0 for q in checked.usable().questions) <= 9


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda row: {**row, "anfrage": ""}, "record 3: anfrage: empty"),
        (lambda row: {**row, "kunde": ""}, "record 3: kunde: empty"),
        (lambda row: {**row, "ticket": "T-00003"}, "'T-00003' stands already in record"),
    ],
)
def test_defects_name_row_and_column(tmp_path, change, said):
    rows, columns = tickets(GERMAN, 1, 4), Columns("kunde", ("anfrage",), "warteschlange", None, "ticket")
    rows[2] = change(rows[2])
    with pytest.raises(DataError, match=said):
        read_table(written(tmp_path, ".csv", rows), columns).usable()


def test_what_is_no_table_is_one_line(tmp_path):
    path = tmp_path / "x.csv"
    cases = {
        b"a;b\n\xff;1\n": "not UTF-8; save it as UTF-8",
        b"a;c\n1;2\n": "there is no column 'b'; there are a, c",
        b"a;b\n1;2;3\n": "line 2 has more values than the header has columns",
    }
    for content, said in cases.items():
        path.write_bytes(content)
        with pytest.raises(DataError, match=said):
            list(table_rows(str(path), ("a", "b")))
    (tmp_path / "x.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match="x.parquet: not parquet"):
        list(table_rows(str(tmp_path / "x.parquet")))
    with pytest.raises(DataError, match="no such table"):
        list(table_rows(str(tmp_path / "nothing.csv")))
    (tmp_path / "x.xlsx").write_bytes(b"x")
    with pytest.raises(DataError, match="not a table that is read here; give one of .csv"):
        list(table_rows(str(tmp_path / "x.xlsx")))


def test_labels_outside_the_task_are_refused():
    rows = tickets(GERMAN, 3, 4)
    task = rows_as_questions(iter(rows), "memory", COLUMNS, None).usable().task
    few = task.model_copy(update={"labels": {"Rechnung": "Rechnung", "Technik": "Technik"}})
    with pytest.raises(DataError, match="is not among the labels Rechnung, Technik"):
        rows_as_questions(iter(rows), "memory", COLUMNS, few).usable()


def test_answers_are_written_as_a_table(tmp_path):
    write_table(tmp_path / "out.csv", [("1", "Müller; GmbH", 'a "b"', -0.5)])
    assert pd.read_csv(tmp_path / "out.csv").to_dict("records") == [
        {"id": 1, "user": "Müller; GmbH", "label": 'a "b"', "probability": 0.606531}
    ]


def test_dates_of_the_table_are_read(tmp_path):
    rows = [{"u": "a", "x": "t", "y": "p", "t": text} for text in ("03.04.2019 10:05", "2019年7月14日")]
    found = rows_as_questions(iter(rows), "memory", Columns("u", ("x",), "y", "t", newest=2), None)
    dates = [item.date for q in found.dataset.questions for item in (*q.history, q)]
    assert set(dates) == {datetime(2019, 4, 3, 10, 5), datetime(2019, 7, 14)}


SAID = [(True, "True"), (False, "False"), (17.0, "17"), (None, None), (float("nan"), None), (1.5, 1.5), ("x", "x")]


@pytest.mark.parametrize(("held", "said"), [*SAID, (np.bool_(True), "True"), (np.float64(3), "3"), (pd.NA, None)])
def test_what_a_cell_says_is_the_same_from_every_library(held, said):
    assert plain(held) == (int(said) if isinstance(said, str) and said.isdigit() else said)
    assert plain(pd.NaT) is plain(Decimal("NaN")) is None
    assert plain(datetime(2020, 1, 1)) == plain(pd.Timestamp(2020, 1, 1)) == "2020-01-01T00:00:00"


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_truth_values_and_whole_floats_are_words_and_gaps_are_no_label(tmp_path, suffix):
    rows = [
        {"u": float(i % 2), "x": f"t{i}", "y": None if i == 4 else i % 3 == 0, "z": float("nan") if i == 4 else i % 3}
        for i in range(9)
    ]
    place = written(tmp_path, suffix, rows)
    for column, labels in (("y", ("False", "True")), ("z", ("0", "1", "2"))):
        checked = read_table(place, Columns("u", ("x",), column))
        assert checked.usable().labels == labels
        assert {question.user_id for question in checked.dataset.questions} == {"0", "1"}
        assert [str(defect) for defect in checked.defects] == [f"{place}: 1 rows have no label and are left out"]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_a_deployment_needs_user_and_text_alone(tmp_path, suffix):
    rows = tickets(GERMAN, 3, 4)
    columns = ("kunde", "anfrage")
    labels = tuple(sorted({row["warteschlange"] for row in rows}))
    task = rows_as_questions(iter(rows), "memory", COLUMNS, None).usable().task
    place = written(tmp_path, suffix, [{name: row[name] for name in columns} for row in rows])
    found = read_table(place, COLUMNS, None, Terms(task, labels)).usable()
    assert {question.id for question in found.questions} == set(map(str, range(1, 13)))
    assert {question.text for question in found.questions} == {row["anfrage"] for row in rows}
    with pytest.raises(DataError, match="there is no column 'warteschlange'"):
        read_table(place, COLUMNS).usable()
    place = written(tmp_path, suffix, [{"anfrage": row["anfrage"]} for row in rows])
    with pytest.raises(DataError, match="there is no column 'kunde'"):
        read_table(place, COLUMNS, None, Terms(task, labels)).usable()


def test_a_deployment_says_that_a_table_with_every_label_is_asked_for_its_newest_rows():
    rows = tickets(GERMAN, 3, 6)
    task = rows_as_questions(iter(rows), "memory", COLUMNS, None).usable().task
    labels = tuple(sorted({row["warteschlange"] for row in rows}))
    checked = rows_as_questions(iter(rows), "memory", COLUMNS, None, Terms(task, labels))
    assert "every row has a label, so 9 of 18 rows are asked" in " ".join(map(str, checked.defects))
    some = [{**row, "warteschlange": "" if place < 2 else row["warteschlange"]} for place, row in enumerate(rows)]
    checked = rows_as_questions(iter(some), "memory", COLUMNS, None, Terms(task, labels))
    assert "every row" not in " ".join(map(str, checked.defects))


def test_two_columns_of_one_name_are_refused_in_every_format(tmp_path):
    import pyarrow
    import pyarrow.feather
    import pyarrow.parquet

    (tmp_path / "t.csv").write_text("user,text,label,text\nu,a,x,b\n")
    made = pyarrow.table([["u"], ["a"], ["x"], ["b"]], names=["user", "text", "label", "text"])
    pyarrow.parquet.write_table(made, tmp_path / "t.parquet")
    pyarrow.feather.write_feather(made, tmp_path / "t.arrow")
    for name in ("t.csv", "t.parquet", "t.arrow"):
        for needed in ((), ("user", "text"), ("user", "label")):
            with pytest.raises(DataError, match="columns 2 and 4 are both called 'text'"):
                list(table_rows(str(tmp_path / name), needed))
    (tmp_path / "t.jsonl").write_text('{"text": "a"}\n{"text": "a", "text": "b"}\n')
    with pytest.raises(DataError, match="record 2: .* the key 'text' stands twice"):
        list(table_rows(str(tmp_path / "t.jsonl")))


def test_columns_without_a_name_do_not_matter_where_others_are_asked_for(tmp_path):
    (tmp_path / "t.csv").write_text("user,text,,\nu,a,,\n")
    assert [row["text"] for row in table_rows(str(tmp_path / "t.csv"), ("user", "text"))] == ["a"]
    with pytest.raises(DataError, match="columns 3 and 4 are both called ''"):
        list(table_rows(str(tmp_path / "t.csv")))
