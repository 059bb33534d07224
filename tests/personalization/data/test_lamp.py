import json
import tracemalloc
from datetime import datetime
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from personalization.data.demo.world import make_world
from personalization.data.json_stream import stream_records
from personalization.data.lamp import check_dataset, files_read, read_dataset, write_dataset, write_predictions
from personalization.data.prompts import usual
from personalization.errors import DataError
from personalization.tasks import Terms, task

INPUT = "Which tag does this movie relate to? tags: [comedy, action, true story] description: a film"


def question(number: int = 0, **changes):
    profile = [{"id": "h0", "description": "an old film", "tag": "comedy", "date": "2020-01-01"}]
    return {"id": str(number), "user_id": "u1", "input": INPUT, "profile": profile, **changes}


def write(folder: Path, questions, golds=None, raw: str | None = None) -> Path:
    path = folder / "x_questions.json"
    path.write_text(raw if raw is not None else json.dumps(questions))
    if golds is not None:
        (folder / "x_outputs.json").write_text(json.dumps({"task": "LaMP_2", "golds": golds}))
    return path


def gold(number: int = 0, output: str = "comedy"):
    return {"id": str(number), "output": output}


def fatal(path: Path) -> str:
    """The single line that a user gets."""
    with pytest.raises(DataError) as caught:
        read_dataset(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_world_survives_writing_and_reading(tmp_path):
    dataset = make_world(1, users=6).dataset
    write_dataset(tmp_path, "demo", dataset)
    assert read_dataset(tmp_path) == dataset
    assert read_dataset(tmp_path / "demo_questions.json").fingerprint() == dataset.fingerprint()


@pytest.mark.parametrize(
    ("name", "text", "item", "labels"),
    [
        ("LaMP_2", INPUT, {"tag": "comedy", "description": "d"}, ("comedy", "action", "true story")),
        (
            "LaMP_2N",
            "Which category? categories: [politics, style & beauty] article: a",
            {"category": "politics", "text": "t", "title": "x"},
            ("politics", "style & beauty"),
        ),
        (
            "LaMP_1",
            'For an author who has written the paper with the title "t", which reference is related? [1]: "a" [2]: "b"',
            {"title": "t", "abstract": "a"},
            ("[1]", "[2]"),
        ),
        ("LaMP_3", "What is the score? review: good", {"text": "t", "score": "5"}, ("1", "2", "3", "4", "5")),
    ],
)
def test_tasks_are_told_by_their_fields(tmp_path, name, text, item, labels):
    path = write(tmp_path, [question(input=text, profile=[{"id": "h", **item}])], [gold(output=labels[-1])])
    dataset = read_dataset(path)
    assert (dataset.task, dataset.labels, dataset.questions[0].gold) == (task(name), labels, labels[-1])
    assert dataset.questions[0].history[0].label == item.get("tag", item.get("category", item.get("score")))


def test_golds_object_jsonl_and_user_based_files_are_read(tmp_path):
    questions = [{k: v for k, v in question(n).items() if k != "user_id"} for n in range(3)]
    path = write(tmp_path, {"task": "LaMP_2", "golds": questions}, [gold(n) for n in range(3)])
    dataset = read_dataset(path)
    assert [q.user_id for q in dataset.questions] == ["0", "1", "2"]
    merged = tmp_path / "merged.jsonl"
    merged.write_text("".join(json.dumps({**q, "output": "action"}) + "\n" for q in questions))
    assert [q.gold for q in read_dataset(merged).questions] == ["action"] * 3


def test_questions_without_answers_are_read_without_golds(tmp_path):
    assert read_dataset(write(tmp_path, [question()])).questions[0].gold is None


@pytest.mark.parametrize(
    ("questions", "golds", "line"),
    [
        ([question(0), question(0)], [gold()], "record 2: id: '0' stands already in"),
        ([question(0)], [gold(), gold()], "record 2: id: '0' has an answer already"),
        ([question(0)], [gold(output="horror")], "'horror' is not among the labels comedy, action, true story"),
        ([question(0), question(1)], [gold(0)], "record 2: id: '1' has no answer in the outputs"),
        ([question(0)], [gold(0), gold(7)], "'7' is the id of no question"),
        ([question(input="")], [gold()], "record 1: input: empty"),
        ([question(input=INPUT + "\0")], [gold()], "record 1: input: holds a null byte"),
        ([question(input=INPUT + "\ud800")], [gold()], "record 1: input: holds half of a surrogate pair"),
        ([question(profile=None)], [gold()], "record 1: profile: missing or not a list"),
        ([question(profile=[{"id": "h"}])], [gold()], "record 1: profile[0]: its fields fit no task"),
        ([question(profile=["x"])], [gold()], "record 1: profile[0]: a str, must be an object"),
        ([["not", "an", "object"]], [gold()], "record 1: record: a list, must be an object"),
        ([question(input="no list here")], [gold()], "no bracketed label list"),
        (
            [question(0), question(1, input=INPUT.replace("action", "drama"))],
            [gold(0), gold(1)],
            "record 2: input: its label list differs from the first question's in action, drama",
        ),
        ([], [], "no question found"),
    ],
)
def test_each_defect_is_one_line_with_its_place(tmp_path, questions, golds, line):
    assert line in fatal(write(tmp_path, questions, golds))


@pytest.mark.parametrize(
    ("raw", "line"),
    [
        (json.dumps([question(0), question(1)])[:-40], "record 2: the file ends in the middle"),
        ("", "the file is empty"),
        ('[{"id": "1"} {"id": "2"}]', "where one of , ] must stand"),
        ('[{"id": "1", "input": "a\x00b"}]', "record 1: not JSON: Invalid control character"),
        ('[{"id": NaN]', "not JSON"),
        (json.dumps([question()]) + "x", "text after the end"),
        ('"just text"', "where one of { must stand"),
    ],
)
def test_broken_files_name_the_record(tmp_path, raw, line):
    assert line in fatal(write(tmp_path, None, raw=raw))


def test_wrong_encoding_names_the_byte(tmp_path):
    path = tmp_path / "x_questions.json"
    path.write_bytes(b'[{"id": "\xff"}]')
    assert "byte 9 is not UTF-8" in fatal(path)


def test_byte_order_mark_and_windows_line_ends_are_read(tmp_path):
    text = json.dumps([question()], indent=1).replace("\n", "\r\n")
    path = tmp_path / "x_questions.json"
    path.write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert len(read_dataset(path)) == 1
    lines = tmp_path / "x.jsonl"
    lines.write_bytes(b"\xef\xbb\xbf" + (json.dumps(question()) + "\r\n" + json.dumps(question(1)) + "\r\n").encode())
    assert len(read_dataset(lines)) == 2


def test_megabyte_records_are_read(tmp_path):
    long = "x" * 1_000_000
    path = write(tmp_path, [question(0, input=INPUT + long), question(1, input=INPUT + long)])
    assert [len(q.text) for q in read_dataset(path).questions] == [len(INPUT) + 1_000_000] * 2


def test_notes_do_not_stop_the_data(tmp_path):
    odd = [{"id": "h", "description": "d", "tag": "horror"}]
    path = write(tmp_path, [question(0, profile=[]), question(1, profile=odd, user_id="u2")], [gold(0), gold(1)])
    checked = check_dataset(path)
    assert [d.fatal for d in checked.defects] == [False, False]
    assert len(checked.usable()) == 2


def said(path: Path) -> str:
    return " | ".join(str(d) for d in check_dataset(path).defects)


def test_equal_defects_are_counted_with_the_first_place(tmp_path):
    questions = [question(n, profile=None) for n in range(40)]
    (defect,) = check_dataset(write(tmp_path, questions, [gold(n) for n in range(40)])).defects
    assert "40 records, first record 1: profile: missing or not a list" in str(defect)
    odd = [question(n, input=INPUT if n else INPUT.replace("action", "drama")) for n in range(9)]
    (defect,) = check_dataset(write(tmp_path, odd, [gold(n) for n in range(9)])).defects
    assert defect.records == 8


REVIEW = "What is the score of the following review on a scale of 1 to 5? review: a lamp"


def review(number=0, scores=("5", "4"), **changes):
    profile = [{"id": str(i), "text": f"item {i}", "score": score} for i, score in enumerate(scores)]
    return {"id": str(number), "user_id": f"u{number}", "input": REVIEW, "profile": profile, **changes}


@pytest.mark.parametrize("five", ["5", "5.0", 5, 5.0, "5."])
def test_equal_numbers_are_one_label(tmp_path, five):
    path = write(tmp_path, [review(scores=(five, "4"))], [gold(output=five)])
    checked = check_dataset(path)
    assert checked.defects == ()
    (asked,) = checked.usable().questions
    assert (asked.gold, [item.label for item in asked.history]) == ("5", ["5", "4"])


def test_history_labels_that_count_for_nothing_are_said_with_their_share(tmp_path, caplog):
    path = write(tmp_path, [review(0, ("5", "5.5", "A")), review(1, ("A", "A"))], [gold(0, "5"), gold(1, "4")])
    assert len(read_dataset(path)) == 2
    (line,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert "4 of 5 history labels (80 %) are not among the labels and count for nothing: 'A', '5.5'" in line
    assert "nothing counts in the history of 1 of 2 questions (50 %)" in line


def test_a_history_of_which_nothing_counts_and_another_case_are_said(tmp_path):
    items = [{"id": str(i), "description": "d", "tag": "True Story"} for i in range(3)]
    line = said(write(tmp_path, [question(profile=items)], [gold()]))
    assert "NONE of the 3 history labels is among the labels, so nothing is known of any user: 'True Story'" in line
    assert "'True Story' differs from 'true story' in case or space alone" in line
    assert "it differs from 'comedy' in case" in said(write(tmp_path, [question()], [gold(output="Comedy")]))


def test_dates_are_read_and_those_that_cannot_be_are_said(tmp_path):
    given = ["July 14, 2019", "2019-7-1", 1609459200, "yesterday", None]
    items = [{"id": str(i), "description": f"d{i}", "tag": "comedy", "date": date} for i, date in enumerate(given)]
    path = write(tmp_path, [question(profile=items, date="2020")])
    (asked,) = check_dataset(path).dataset.questions
    years = [(2019, 7, 14), (2019, 7, 1), (2021, 1, 1)]
    assert [item.date for item in asked.history] == [*(datetime(*day) for day in years), None, None]
    assert asked.date == datetime(2020, 1, 1)
    assert "1 of 5 dates cannot be read and count as missing, such as 'yesterday'" in said(path)
    assert "2 of 5 items (40 %) of histories with dates have none; they are taken for the oldest" in said(path)
    assert "1 of 1 questions (100 %) have history items later than their own date; these are left out" in said(path)
    write_dataset(tmp_path / "again", "x", check_dataset(path).dataset)
    assert read_dataset(tmp_path / "again").questions[0].history == asked.history
    assert read_dataset(tmp_path / "again").questions[0].date == asked.date


def test_the_asked_item_in_its_own_history_is_said(tmp_path):
    items = [{"id": "h", "description": "a film", "tag": "comedy"}]
    path = write(tmp_path, [question(0, profile=items), question(1)])
    assert "1 of 2 questions (50 %) have their own item in the history; it is left out" in said(path)


def test_a_prompt_without_its_tasks_form_is_said_and_decides_nothing(tmp_path):
    path = write(tmp_path, [question(0, input="x a film"), question(1), question(2)])
    checked = check_dataset(path)
    assert checked.usable().labels == ("comedy", "action", "true story")
    assert "1 of 3 questions (33.3 %) have not the form of a LaMP_2 prompt" in said(path)
    assert "(first: record 1, input)" in said(path)
    assert usual(task("LaMP_2"), checked.dataset.questions).text == INPUT


@pytest.mark.parametrize("quote", ['"', "'"])
def test_a_quoted_label_list_is_read_as_labels(tmp_path, quote):
    listed = ", ".join(f"{quote}{label}{quote}" for label in ("comedy", "arts, crafts", "true story"))
    path = write(tmp_path, [question(input=f"tags: [{listed}] description: a film")], [gold(output="comedy")])
    assert read_dataset(path).labels == ("comedy", "arts, crafts", "true story")


def test_null_columns_of_other_tasks_are_nothing(tmp_path):
    nulls = dict.fromkeys(("title", "abstract", "tag", "description", "category", "date"))
    items = [{"id": "h", "text": "a lamp", "score": "5", **nulls}]
    for text in (REVIEW, "How good is it?"):
        dataset = read_dataset(write(tmp_path, [review(profile=items, input=text)], [gold(output="5")]))
        assert (dataset.task.name, dataset.questions[0].history[0].label) == ("LaMP_3", "5")


@pytest.mark.parametrize(
    ("raw", "line"),
    [
        ("\n".join(json.dumps(question(n)) for n in range(3)), "(JSON Lines): name the file .jsonl"),
        (json.dumps({"version": 1, "data": [question()]}), "whose list stands under 'data': write the list alone"),
        (json.dumps({"0": question()}), "an object of records by their ids ('0'): write a list"),
        (json.dumps(question()), "a single record, not a list of records"),
        (json.dumps([{"user_id": "u", "profile": [], "query": [question()]}]), "one record a user (OPPU's layout)"),
        (json.dumps([question(profile={"id": ["h"], "tag": ["comedy"]})]), "an object of lists, as `datasets` writes"),
        (json.dumps([question(profile={"user_data": {}, "history": []})]), "an object with user_data, history"),
    ],
)
def test_other_layouts_are_named_with_what_to_do(tmp_path, raw, line):
    assert line in fatal(write(tmp_path, None, [gold()], raw=raw))


def test_ids_that_are_numbers_and_the_tasks_name_are_kept(tmp_path):
    text = "Which category? categories: [politics, sports] article: a"
    news = [{"id": 7, "input": text, "profile": []}, {"id": "x", "input": text, "profile": []}]
    checked = check_dataset(write(tmp_path, news))
    assert (checked.dataset.task.name, checked.name, checked.numbers) == ("LaMP_2N", "LaMP_2", {"7": 7})
    write_predictions(tmp_path / "p.json", checked.name, {"7": "sports", "x": "sports"}, checked.numbers)
    assert [answer["id"] for answer in json.loads((tmp_path / "p.json").read_text())["golds"]] == [7, "x"]
    (tmp_path / "x_outputs.json").write_text(
        json.dumps({"task": "LaMP_2M", "golds": [gold(7, "sports"), gold("x", "sports")]})
    )
    assert check_dataset(tmp_path).name == "LaMP_2M"


def test_questions_for_a_config_need_list_no_labels_and_may_list_no_others(tmp_path):
    terms = Terms(task("LaMP_3"), ("1", "2", "3", "4", "5"))
    new = write(tmp_path, [review(n, scores=()) for n in range(3)])
    assert len(check_dataset(new, terms).usable()) == 3
    bare = write(tmp_path, [review(input="a lamp")])
    assert check_dataset(bare, terms).usable().labels == terms.labels
    movies = check_dataset(write(tmp_path, [question(0), question(1)]), terms)
    assert "2 records, first record 1: input: a question of LaMP_2, but the config is for LaMP_3" in str(
        movies.defects[0]
    )
    listed = check_dataset(write(tmp_path, [question()]), Terms(task("LaMP_2"), ("comedy", "western")))
    assert "its label list differs from the config's in action, true story, western" in str(listed.defects[0])
    turned = Terms(task("LaMP_2"), ("true story", "comedy", "action"))
    assert check_dataset(write(tmp_path, [question()], [gold(5, "opera")]), turned).usable().labels == turned.labels


def test_missing_path_and_empty_folder(tmp_path):
    assert "no such file or folder" in fatal(tmp_path / "nothing")
    assert "no *_questions.json or *.jsonl" in fatal(tmp_path)


def test_predictions_file_has_the_official_form(tmp_path):
    write_predictions(tmp_path / "p.json", "LaMP_2", {"1": "comedy"})
    assert json.loads((tmp_path / "p.json").read_text()) == {
        "task": "LaMP_2",
        "golds": [{"id": "1", "output": "comedy"}],
    }


def test_memory_of_streaming_does_not_grow_with_the_file(tmp_path):
    def peak(n: int) -> int:
        path = write(tmp_path, [question(i, input="y" * 2000) for i in range(n)])
        tracemalloc.start()
        assert sum(1 for _ in stream_records(path)) == n
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    assert peak(4000) < 1.3 * peak(1000)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(), children, max_size=3),
    max_leaves=8,
)


@settings(max_examples=60, deadline=None)
@given(st.lists(json_values, max_size=6), st.integers(1, 40), st.booleans())
def test_stream_equals_json_load(tmp_path_factory, values, chunk, ascii_only):
    path = tmp_path_factory.mktemp("stream") / "x.json"
    text = json.dumps(values, ensure_ascii=ascii_only)
    if not ascii_only:
        text = text.encode("utf-8", "replace").decode()
    path.write_text(text, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("personalization.data.json_stream.CHUNK_BYTES", chunk)
        assert [value for _, value in stream_records(path)] == json.loads(text)


@settings(max_examples=150, deadline=None)
@given(st.lists(json_values, max_size=4), st.binary(max_size=4), st.floats(0, 1))
def test_any_damage_is_one_line_and_never_a_traceback(tmp_path_factory, values, damage, place):
    path = tmp_path_factory.mktemp("damage") / "x_questions.json"
    data = json.dumps([question(), *values]).encode("utf-8", "replace")
    at = int(place * len(data))
    path.write_bytes(data[:at] + damage + data[at + len(damage) :])
    try:
        read_dataset(path)
    except DataError as error:
        assert "\n" not in str(error)


def test_a_key_that_stands_twice_is_a_defect(tmp_path):
    path = tmp_path / "a_questions.json"
    path.write_text('[{"id": 1, "input": "a", "profile": [{"id": 1, "id": 2}]}]')
    (defect,) = check_dataset(path).defects
    assert (defect.fatal, "the key 'id' stands twice" in str(defect)) == (True, True)


@pytest.mark.parametrize(
    ("content", "said"), [("", "the file is empty"), (" \n", "the file is empty"), ("[]", "no question found")]
)
def test_a_file_without_questions_is_named(tmp_path, content, said):
    path = tmp_path / "a_questions.json"
    path.write_text(content)
    assert [str(defect) for defect in check_dataset(path).defects] == [f"{path}: {said}"]


def test_files_that_are_read_are_questions_and_their_answers(tmp_path):
    for name in ("dev_questions.json", "dev_outputs.json", "more.jsonl", "predictions.json"):
        (tmp_path / name).touch()
    assert [path.name for path in files_read(tmp_path)] == [
        "dev_questions.json", "dev_outputs.json", "more.jsonl", "more.jsonl"
    ]  # fmt: skip
    assert files_read(tmp_path / "x.csv") == [tmp_path / "x.csv"] * 2
