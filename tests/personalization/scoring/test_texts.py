"""One row a text, kept by the text."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from personalization.scoring.texts import TextRows

ROOT = Path(__file__).parents[3]
TEXTS = ["a dog", "", "a heist in paris", "naïve \ud83d"]
APPENDING = """
import sys
from pathlib import Path
import numpy as np
from personalization.scoring.texts import TextRows
path, name = sys.argv[1:]
rows = TextRows(Path(path), 3)
print("ready", flush=True)
sys.stdin.readline()
for number in range(60):
    both, own = f"text {number}", f"{name} {number}"
    rows.of([both, own], lambda new, keep: keep(
        range(len(new)), np.array([[len(t), int(t.split()[1]), t[0] == "t"] for t in new], dtype="f4")
    ))
"""


def row_of(text):
    """What a text's row must be."""
    return np.array([len(text), sum(map(ord, text)) % 97, 1], dtype=np.float32)


class Compute:
    """Makes rows, and notes for which texts."""

    def __init__(self):
        self.asked = []

    def __call__(self, texts, keep):
        self.asked.append(texts)
        for row, text in enumerate(texts):
            keep(np.array([row]), row_of(text)[None])


def right(found, texts):
    return (found == np.stack([row_of(text) for text in texts])).all()


@pytest.fixture(params=["on disk", "in memory"])
def rows(request, tmp_path):
    return TextRows(tmp_path / "rows" if request.param == "on disk" else None, 3)


def test_a_text_is_computed_once_in_whichever_list_it_comes(rows, tmp_path):
    (tmp_path / "rows").parent.mkdir(exist_ok=True)
    compute = Compute()
    asked = [TEXTS[0], TEXTS[2], TEXTS[0]]
    assert right(rows.of(asked, compute), asked)
    assert right(rows.of(TEXTS[::-1], compute), TEXTS[::-1])
    assert compute.asked == [[TEXTS[0], TEXTS[2]], [TEXTS[3], TEXTS[1]]]


def test_what_was_written_is_read_by_the_next_and_by_those_that_are_there(tmp_path):
    first, second, compute = TextRows(tmp_path / "rows", 3), TextRows(tmp_path / "rows", 3), Compute()
    first.of(TEXTS[:2], compute)
    assert right(second.of(TEXTS[:3], compute), TEXTS[:3])
    assert right(first.of(TEXTS, compute), TEXTS)
    assert right(TextRows(tmp_path / "rows", 3).of(TEXTS, compute), TEXTS)
    assert compute.asked == [TEXTS[:2], TEXTS[2:3], TEXTS[3:]]
    assert (tmp_path / "rows.rows").stat().st_size == 4 * 3 * 4


def test_in_memory_the_latest_stay():
    rows, compute = TextRows(None, 3, most=3), Compute()
    rows.of(["a", "b", "c"], compute)
    rows.of(["a"], compute)
    assert right(rows.of(["d"], compute), ["d"])
    rows.of(["a", "c", "d"], compute)
    rows.of(["b"], compute)
    assert compute.asked == [["a", "b", "c"], ["d"], ["b"]]
    many = [str(number) for number in range(9)]
    assert right(rows.of(many, compute), many)
    assert len(rows._latest) == 3


def test_two_processes_append_to_the_same_files(tmp_path):
    command = [sys.executable, "-c", APPENDING, str(tmp_path / "rows")]
    running = [
        subprocess.Popen([*command, name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)
        for name in ("one", "two")
    ]
    assert [process.stdout.readline() for process in running] == ["ready\n"] * 2
    for process in running:
        process.stdin.write("\n")
        process.stdin.flush()
    for process in running:
        process.communicate()
        assert process.returncode == 0
    asked = [f"{name} {number}" for name in ("text", "one", "two") for number in range(60)]
    found = TextRows(tmp_path / "rows", 3).of(asked, None)
    assert found.tolist() == [[len(t), int(t.split()[1]), t[0] == "t"] for t in asked]


@pytest.mark.parametrize("where", ["rows", "texts"])
def test_a_damaged_row_is_said_and_computed_anew(tmp_path, where, caplog):
    TextRows(tmp_path / "rows", 3).of(TEXTS, Compute())
    path = tmp_path / f"rows.{where}"
    data = bytearray(path.read_bytes())
    data[len(data) // 4 + (18 if where == "texts" else 5)] ^= 1  # of the second: a number, or the checksum
    path.write_bytes(data)
    again = Compute()
    reader = TextRows(tmp_path / "rows", 3)
    assert right(reader.of(TEXTS, again), TEXTS)
    assert right(reader.of(TEXTS, None), TEXTS)
    assert again.asked == [TEXTS[1:2]]
    assert caplog.text.count("rows.rows: a row is damaged; it is computed anew") == 1
    assert right(TextRows(tmp_path / "rows", 3).of(TEXTS, None), TEXTS)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 4 * 12), st.integers(0, 4 * 20))
def test_an_end_that_was_torn_off_is_computed_anew(tmp_path_factory, rows_left, records_left):
    """A killed process may leave any part of what it wrote last."""
    path = tmp_path_factory.mktemp("torn") / "rows"
    TextRows(path, 3).of(TEXTS, Compute())
    for suffix, left in ((".rows", rows_left), (".texts", records_left)):
        with path.with_suffix(suffix).open("r+b") as file:
            file.truncate(left)
    whole, again = min(rows_left // 12, records_left // 20), Compute()
    assert right(TextRows(path, 3).of(TEXTS, again), TEXTS)
    assert again.asked == ([TEXTS[whole:]] if whole < 4 else [])
    assert right(TextRows(path, 3).of(TEXTS, None), TEXTS)


@pytest.mark.parametrize("most", [0, 9])
def test_files_that_were_removed_are_written_anew(tmp_path, most):
    rows, compute = TextRows(tmp_path / "rows", 3, most), Compute()
    rows.of(TEXTS, compute)
    for path in tmp_path.iterdir():
        path.unlink()
    assert right(rows.of(TEXTS, compute), TEXTS)
    assert right(TextRows(tmp_path / "rows", 3).of(TEXTS, compute), TEXTS)
    assert len(compute.asked) == 2


def test_what_a_killed_pass_had_computed_is_not_computed_again(tmp_path):
    def killed(texts, keep):
        keep(np.array([2, 0]), np.stack([row_of(texts[2]), row_of(texts[0])]))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        TextRows(tmp_path / "rows", 3).of(TEXTS, killed)
    again = Compute()
    assert right(TextRows(tmp_path / "rows", 3).of(TEXTS, again), TEXTS)
    assert again.asked == [[TEXTS[1], TEXTS[3]]]


def test_the_folder_keeps_to_its_limit_and_what_is_being_written_stays(tmp_path, monkeypatch):
    monkeypatch.setenv("CHAMTUNE_CACHE_GB", "1e-9")
    TextRows(tmp_path / "old", 3).of(TEXTS, Compute())

    def compute(texts, keep):
        keep(np.array([0]), np.zeros((1, 3)))
        TextRows(tmp_path / "other", 3).of(TEXTS, Compute())
        assert sorted(path.stem for path in tmp_path.glob("*.rows")) == ["new", "other"]
        keep(np.arange(4), np.stack([row_of(text) for text in texts]))

    TextRows(tmp_path / "new", 3).of(TEXTS, compute)
    assert sorted(path.name for path in tmp_path.glob("*.rows")) == ["new.rows"]
