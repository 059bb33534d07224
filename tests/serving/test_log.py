"""Nothing that somebody was told of is lost."""

import json
import os
import resource

import pytest

from personalization.errors import DataError, UnavailableError
from serving.log import Log, records, segments


def test_a_record_is_found_by_its_name_across_files(tmp_path):
    log = Log(tmp_path, "q", segment_bytes=200)
    names = [log.append([{"text": f"é {number}"}])[0] for number in range(20)]
    assert len(segments(tmp_path, "q")) > 2
    for number, name in enumerate(names):
        assert log.find(name)["text"] == f"é {number}"
    segment, offset, nonce = names[3].split("-")
    for odd in (f"{segment}-{offset}-00000000", f"{segment}-1-{nonce}", f"ff-0-{nonce}", f"1-{'f' * 16}-{nonce}"):
        assert log.find(odd) is None
    assert [record["request"] for record in records(tmp_path, "q")] == names


def test_old_files_go_where_only_some_are_kept(tmp_path):
    log = Log(tmp_path, "q", segment_bytes=50, keep=2)
    names = [log.append([{"number": number}])[0] for number in range(20)]
    assert len(segments(tmp_path, "q")) == 2
    assert log.find(names[0]) is None
    assert log.find(names[-1])["number"] == 19


def test_a_torn_line_is_cut_off_and_the_next_one_follows(tmp_path, caplog):
    log = Log(tmp_path, "q")
    first = log.append([{"number": 1}])
    log.close()
    path = segments(tmp_path, "q")[0][1]
    with path.open("ab") as file:
        file.write(b'{"request": "1-' + b"x" * 100_000)
    assert [record["number"] for record in records(tmp_path, "q")] == [1]
    log = Log(tmp_path, "q")
    assert "its last line has no end and is cut off" in caplog.text
    second = log.append([{"number": 2}])
    assert [record["request"] for record in records(tmp_path, "q")] == first + second


def test_a_full_disk_is_said_and_leaves_whole_lines(tmp_path):
    log = Log(tmp_path, "q")
    log.append([{"number": 1}])
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    import signal

    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(UnavailableError, match="the log cannot be written: File too large"):
            log.append([{"text": "x" * 400} for _ in range(9)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    name = log.append([{"number": 2}])[0]
    assert [record["number"] for record in records(tmp_path, "q")] == [1, 2]
    assert log.find(name)["number"] == 2


def test_a_damaged_line_is_named(tmp_path):
    log = Log(tmp_path, "q")
    log.append([{"number": 1}])
    path = segments(tmp_path, "q")[0][1]
    path.write_bytes(b"nonsense\n" + path.read_bytes())
    with pytest.raises(DataError, match="line 1 is no JSON"):
        list(records(tmp_path, "q"))
    assert oct(os.stat(path).st_mode)[-3:] == "600"
    assert json.loads(path.read_text().splitlines()[1])["number"] == 1


def test_a_next_file_that_cannot_be_opened_leaves_the_present_one(tmp_path, monkeypatch):
    def too_many(*_):
        raise OSError(24, "Too many open files")

    log = Log(tmp_path, "q", segment_bytes=10)
    names = log.append([{"number": 1}])
    monkeypatch.setattr("serving.log.os.open", too_many)
    with pytest.raises(UnavailableError, match="the log cannot be written: Too many open files"):
        log.append([{"number": 2}])
    monkeypatch.undo()
    log.sync()
    names += log.append([{"number": 2}])
    log.close()
    assert [record["request"] for record in records(tmp_path, "q")] == names
    assert len(segments(tmp_path, "q")) == 2


def test_a_line_that_no_sync_has_taken_is_taken_by_the_next(tmp_path, monkeypatch):
    """One that is written while a sync runs, and one that a sync could not take."""
    log, write, done = Log(tmp_path, "q"), os.write, []

    def beside_a_sync(*given):
        log.sync()
        return write(*given)

    def broken(_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("serving.log.os.write", beside_a_sync)
    log.append([{"number": 1}])
    monkeypatch.undo()
    monkeypatch.setattr("serving.log.os.fsync", broken)
    for _ in range(2):
        with pytest.raises(UnavailableError, match="the log cannot be written: Input/output error"):
            log.sync()
    monkeypatch.setattr("serving.log.os.fsync", done.append)
    log.sync()
    log.sync()
    assert len(done) == 1
