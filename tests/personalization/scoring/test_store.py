import fcntl
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from personalization.backbones.cached import CachedScorer
from personalization.errors import UsageError
from personalization.scoring.store import evict, key_of, stored_table

ROOT = Path(__file__).parent.parent.parent.parent
TABLE = np.arange(6, dtype=np.float32).reshape(2, 3)


def gives(table, truncated=0):
    def compute(out, keep):
        out[:] = table
        return truncated

    return compute


def fail(out, keep):
    raise AssertionError("computed although it was stored")


def flipped(content, place):
    """The bytes with one bit turned."""
    return content[:place] + bytes([content[place] ^ 0x01]) + content[place + 1 :]


def test_a_table_is_computed_once(tmp_path):
    assert stored_table(tmp_path, "k", (2, 3), gives(TABLE, 2))[1] == 2
    table, truncated = stored_table(tmp_path, "k", (2, 3), fail)
    assert (table == TABLE).all()
    assert truncated == 2
    assert [path.name for path in tmp_path.iterdir()] == ["k.safetensors"]


def test_every_flipped_byte_is_named_and_the_table_computed_anew(tmp_path):
    stored_table(tmp_path, "k", (2, 3), gives(TABLE))
    path = tmp_path / "k.safetensors"
    intact = path.read_bytes()
    for place in range(len(intact)):
        path.write_bytes(flipped(intact, place))
        with pytest.warns(UserWarning, match="k.safetensors is damaged"):
            table, _ = stored_table(tmp_path, "k", (2, 3), gives(TABLE + 1))
        assert (table == TABLE + 1).all()
    assert (stored_table(tmp_path, "k", (2, 3), fail)[0] == TABLE + 1).all()


def test_a_truncated_or_foreign_file_is_computed_anew(tmp_path):
    for content in (b"", b"junk", b"\x08" + b"\0" * 7 + b"{}      "):
        (tmp_path / "k.safetensors").write_bytes(content)
        with pytest.warns(UserWarning, match="damaged"):
            stored_table(tmp_path, "k", (2, 3), gives(TABLE))


class Killed(BaseException):
    pass


def batch_by_batch(seen, kill_after=99):
    """Computes one row a batch; notes the rows that it computed."""

    def compute(out, keep):
        for row in np.flatnonzero(np.isnan(out).any(axis=1)):
            if kill_after == len(seen):
                raise Killed
            seen.append(int(row))
            out[row] = TABLE[row % 2] + row
            keep(np.array([row]), out[row : row + 1])
        return 3

    return compute


def test_a_killed_pass_goes_on_where_it_stopped(tmp_path):
    first, second = [], []
    with pytest.raises(Killed):
        stored_table(tmp_path, "k", (9, 3), batch_by_batch(first, kill_after=4))
    table, truncated = stored_table(tmp_path, "k", (9, 3), batch_by_batch(second))
    assert (first, second) == ([0, 1, 2, 3], [4, 5, 6, 7, 8])
    assert (table == TABLE[np.arange(9) % 2] + np.arange(9)[:, None]).all()
    assert truncated == 3


@pytest.mark.parametrize("cut", [1, 5, 12, 19])
def test_a_torn_end_of_the_journal_is_computed_anew(tmp_path, cut):
    with pytest.raises(Killed):
        stored_table(tmp_path, "k", (9, 3), batch_by_batch([], kill_after=4))
    journal = tmp_path / "k.partial"
    journal.write_bytes(journal.read_bytes()[:-cut])
    again = []
    stored_table(tmp_path, "k", (9, 3), batch_by_batch(again))
    assert again == [3, 4, 5, 6, 7, 8]


def test_a_flipped_byte_in_the_journal_is_seen(tmp_path, caplog):
    with pytest.raises(Killed):
        stored_table(tmp_path, "k", (9, 3), batch_by_batch([], kill_after=4))
    journal = tmp_path / "k.partial"
    intact = journal.read_bytes()
    for place in range(len(intact)):
        journal.write_bytes(flipped(intact, place))
        again = []
        with pytest.raises(Killed):
            stored_table(tmp_path, "k", (9, 3), batch_by_batch(again, kill_after=1))
        assert again == [place // (len(intact) // 4)]
    assert "are damaged; their scores are computed anew" in caplog.text


def test_the_tables_read_longest_ago_go_first(tmp_path, monkeypatch):
    monkeypatch.setenv("CHAMTUNE_CACHE_GB", "0.00001")
    big = np.zeros((100, 20), dtype=np.float32)
    for age, name in ((30, "a"), (20, "b")):
        stored_table(tmp_path, name, (100, 20), lambda out, keep: out.fill(0) or 0)
        os.utime(tmp_path / f"{name}.safetensors", (time.time() - age, time.time() - age))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b.safetensors"]
    monkeypatch.setenv("CHAMTUNE_CACHE_GB", "0.00002")
    stored_table(tmp_path, "c", (100, 20), gives(big))
    os.utime(tmp_path / "c.safetensors", (time.time() - 10, time.time() - 10))
    stored_table(tmp_path, "b", (100, 20), fail)
    stored_table(tmp_path, "d", (100, 20), gives(big))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b.safetensors", "d.safetensors"]


def test_what_others_put_into_the_folder_stays(tmp_path, monkeypatch):
    monkeypatch.setenv("CHAMTUNE_CACHE_GB", "0")
    (tmp_path / "fresh").mkdir()
    for name in ("notes.txt", ".gitignore"):
        (tmp_path / name).write_bytes(b"x" * 1000)
        os.utime(tmp_path / name, (0, 0))
    stored_table(tmp_path, "old", (2, 3), gives(TABLE))
    stored_table(tmp_path, "new", (2, 3), gives(TABLE))
    assert {path.name for path in tmp_path.iterdir()} == {"fresh", "notes.txt", ".gitignore", "new.safetensors"}


def test_a_journal_in_use_is_not_removed_and_an_abandoned_one_is(tmp_path):
    for name in ("used", "left"):
        (tmp_path / f"{name}.partial").write_bytes(b"x" * 100)
    with (tmp_path / "used.partial").open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        removed = evict(tmp_path, 0, tmp_path / "none")
    assert [path.name for path in removed] == ["left.partial"]


def test_a_journal_that_vanishes_costs_no_result(tmp_path):
    def compute(out, keep):
        (tmp_path / "k.partial").unlink()
        out[:] = TABLE
        return 0

    assert (stored_table(tmp_path, "k", (2, 3), compute)[0] == TABLE).all()


def test_a_table_that_may_not_be_touched_is_read_all_the_same(tmp_path, monkeypatch):
    stored_table(tmp_path, "k", (2, 3), gives(TABLE))

    def refuse(*_):
        raise PermissionError("not yours")

    monkeypatch.setattr(os, "utime", refuse)
    assert (stored_table(tmp_path, "k", (2, 3), fail)[0] == TABLE).all()


def test_the_temporary_file_of_a_killed_process_goes_after_a_day(tmp_path):
    for name, age in ((".k.safetensors.old", 90_000), (".k.safetensors.new", 60)):
        (tmp_path / name).write_bytes(b"x")
        os.utime(tmp_path / name, (time.time() - age, time.time() - age))
    stored_table(tmp_path, "k", (2, 3), gives(TABLE))
    assert sorted(path.name for path in tmp_path.iterdir()) == [".k.safetensors.new", "k.safetensors"]


def test_a_size_limit_that_is_no_number_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("CHAMTUNE_CACHE_GB", "twenty")
    with pytest.raises(UsageError, match="CHAMTUNE_CACHE_GB='twenty' is no number"):
        stored_table(tmp_path, "k", (2, 3), fail)


WORKER = """
import sys, time
from pathlib import Path
import numpy as np
from personalization.scoring.store import stored_table

def compute(out, keep):
    for row in np.flatnonzero(np.isnan(out).any(axis=1)):
        time.sleep(0.05)
        out[row] = row
        keep(np.array([row]), out[row:row + 1])
        print(row, flush=True)
    return 0

table, _ = stored_table(Path(sys.argv[1]), sys.argv[2], (40, 2), compute)
assert (table[:, 0] == np.arange(40)).all()
"""


def start_worker(folder, key="k"):
    return subprocess.Popen(
        [sys.executable, "-c", WORKER, str(folder), key], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )


def test_two_processes_share_one_pass_and_the_second_takes_over_when_the_first_dies(tmp_path):
    with start_worker(tmp_path) as first, start_worker(tmp_path, "other") as other:
        computed = [int(first.stdout.readline()) for _ in range(5)]
        with start_worker(tmp_path) as second, start_worker(tmp_path) as third:
            time.sleep(0.3)
            first.kill()
            computed += [int(line) for line in first.stdout]
            taken_over = [int(line) for line in [*second.stdout, *third.stdout]]
        other.stdout.read()
    assert (first.returncode, second.returncode, third.returncode, other.returncode) == (-9, 0, 0, 0)
    assert sorted({*computed, *taken_over}) == list(range(40))
    assert len(set(computed) & set(taken_over)) <= 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["k.safetensors", "other.safetensors"]


def test_key_sees_every_part():
    parts = {"model": "a", "prompts": ["p"], "dtype": "float32"}
    keys = {key_of(parts), *(key_of({**parts, name: "other"}) for name in parts)}
    assert len(keys) == 4


def test_a_second_scorer_reads_what_the_first_scored_and_loads_no_model(tmp_path, tiny_model):
    first = CachedScorer(str(tiny_model), tmp_path)
    scores = first.label_logprobs(["a film\nanswer:"], [" comedy\n", " action\n"])
    second = CachedScorer(str(tiny_model), tmp_path)
    assert (second.label_logprobs(["a film\nanswer:"], [" comedy\n", " action\n"]) == scores).all()
    assert "backbone" not in vars(second)
    assert len(list(tmp_path.iterdir())) == 1
