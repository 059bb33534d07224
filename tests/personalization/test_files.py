import errno
import os
import time

import pytest

from personalization.errors import UsageError
from personalization.files import DRAFT_S, atomic_file, clear_drafts, copy_atomic, refuse_unwritable, write_atomic


@pytest.fixture(params=[0o022, 0o077, 0o007])
def umask(request):
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def mode(path):
    return path.stat().st_mode & 0o777


def test_a_new_file_has_the_mode_that_the_umask_leaves(tmp_path, umask):
    write_atomic(tmp_path / "new", "x")
    assert mode(tmp_path / "new") == 0o666 & ~umask


@pytest.mark.parametrize("kept", [0o600, 0o640, 0o664])
def test_a_file_keeps_its_mode(tmp_path, umask, kept):
    path = tmp_path / "old"
    path.write_text("old")
    path.chmod(kept)
    write_atomic(path, "new")
    assert (path.read_text(), mode(path)) == ("new", kept)


def test_nobody_else_reads_a_private_file_while_it_is_written(tmp_path):
    path = tmp_path / "old"
    path.write_text("old")
    path.chmod(0o600)
    with atomic_file(path) as file:
        file.write(b"secret")
        file.flush()
        assert [mode(found) for found in tmp_path.iterdir()] == [0o600, 0o600]


@pytest.mark.parametrize("there", [True, False])
def test_a_link_stays_and_its_target_is_replaced(tmp_path, there):
    target, link = tmp_path / "elsewhere" / "target", tmp_path / "link"
    target.parent.mkdir()
    if there:
        target.write_text("old")
    link.symlink_to(target)
    write_atomic(link, "new")
    assert link.is_symlink()
    assert target.read_text() == "new"
    assert [path.name for path in target.parent.iterdir()] == ["target"]
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["link"]


def test_what_stood_there_stays_where_the_writing_fails(tmp_path):
    path = tmp_path / "old"
    path.write_text("old")
    with pytest.raises(TypeError), atomic_file(path) as file:
        file.write("text, where bytes are due")
    assert [(found.name, found.read_text()) for found in tmp_path.iterdir()] == [("old", "old")]


def test_an_error_names_the_file_and_not_its_draft(tmp_path):
    (tmp_path / "taken").mkdir()
    with pytest.raises(IsADirectoryError) as found:
        write_atomic(tmp_path / "taken", "x")
    assert found.value.filename == str(tmp_path / "taken")
    with pytest.raises(OSError, match="No space left") as found, atomic_file(tmp_path / "new"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert found.value.filename == str(tmp_path / "new")
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


def test_an_output_never_lies_in_what_is_read(tmp_path):
    (tmp_path / "asked").mkdir()
    for name in ("q.json", "asked/q.json"):
        (tmp_path / name).touch()
    (tmp_path / "link").symlink_to(tmp_path / "q.json")
    for out, read in (("q.json", "q.json"), ("link", "q.json"), ("asked/p.json", "asked"), ("asked/../q.json", "link")):
        with pytest.raises(UsageError, match="which is read"):
            refuse_unwritable(tmp_path / out, None, tmp_path / read)
    refuse_unwritable(tmp_path / "asked" / "p.json", tmp_path / "asked" / "q.json", "owner/name")


def test_an_output_that_cannot_be_made_is_named_before_there_is_one(tmp_path, unprivileged):
    (tmp_path / "file").touch()
    (tmp_path / "closed").mkdir(mode=0o555)
    with pytest.raises(UsageError, match="is a folder; give a file"):
        refuse_unwritable(tmp_path)
    with pytest.raises(NotADirectoryError, match=str(tmp_path / "file")):
        refuse_unwritable(tmp_path / "file" / "deep" / "p.json")
    with unprivileged(), pytest.raises(PermissionError, match=str(tmp_path / "closed")):
        refuse_unwritable(tmp_path / "closed" / "deep" / "p.json")
    refuse_unwritable(tmp_path / "new" / "deep" / "p.json")
    assert not (tmp_path / "new").exists()


def test_drafts_of_dead_writers_go_after_a_day_and_nothing_else_does(tmp_path, monkeypatch):
    others = (".new.0123456789abcdeg", ".news.0123456789abcdef", "new.0123456789abcdef", "old")
    for name in (".new.0123456789abcdef", ".new.01234567", *others):
        (tmp_path / name).write_text("x")
    clear_drafts(tmp_path, "new")
    assert len(list(tmp_path.iterdir())) == 6
    now = time.time()
    monkeypatch.setattr("personalization.files.time.time", lambda: now + DRAFT_S + 60)
    clear_drafts(tmp_path, "new")
    assert {path.name for path in tmp_path.iterdir()} == set(others)


def test_a_folder_is_copied_in_one_step(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x").write_text("1")
    copy_atomic(tmp_path / "a", tmp_path / "b")
    there = ["a", "a/x", "b", "b/x"]
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")) == there
    with pytest.raises(OSError, match="not empty"):
        copy_atomic(tmp_path / "a", tmp_path / "b")
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")) == there
