"""A home, or a place for a deployment, that cannot be written: one line, a code, and nothing changed."""

import os

import optuna
import pytest
import yaml

from personalization.databases import sqlite_url
from personalization.files import WRITES
from studies.runner import run_study
from studies.shown.logs import log_to
from studies.storage import SEALED, open_storage
from tracking.spool import Spool

CLOSED = f"Permission denied; {WRITES}"
WRITING = {
    "compare small": CLOSED,
    "promote small": CLOSED,
    "run spec.yaml": CLOSED,
    "sync small --tracking http://127.0.0.1:9": CLOSED,
    "insights small --enqueue 1": f"studies.db cannot be written: {SEALED}",
}
"""Command -> how its one line ends."""
READING = ("studies", "show small", "insights small")


@pytest.fixture
def sealed(tmp_path, monkeypatch, spec_of, kept_scores, no_results, unprivileged):
    """A folder with the spec of a study and its home, which cannot be written."""
    monkeypatch.chdir(tmp_path)
    spec = spec_of(trials=1, constraints={})
    (tmp_path / "spec.yaml").write_text(yaml.safe_dump(spec.model_dump(mode="json")))
    run_study(spec, tmp_path / "home")
    Spool(tmp_path / "home", "small", "0123456789ab").append({"kind": "study"})
    paths = [tmp_path / "home", *(tmp_path / "home").rglob("*")]
    for path in paths:
        path.chmod(0o555 if path.is_dir() else 0o444)
    with unprivileged():
        yield tmp_path
    for path in paths:
        path.chmod(0o755)


def untouched(home):
    """When each file was changed; not of a database, which the process that wrote it may still put in order."""
    return {path: path.stat().st_mtime_ns for path in home.rglob("*") if ".db" not in path.name}


def test_a_home_that_cannot_be_written_is_one_line_for_every_command_that_writes(sealed, command):
    before = untouched(sealed / "home")
    for line, said in WRITING.items():
        code, out, err = command(*line.split(), "--home", "home")
        assert code in (69, 74), (line, err)
        assert (out, len(err.strip().splitlines())) == ("", 1), line
        assert str(sealed / "home") in err or err.startswith("error: home")
        assert err.endswith(f"{said}\n"), (line, err)
    assert untouched(sealed / "home") == before


def test_a_home_that_cannot_be_written_is_read_as_it_is(sealed, command):
    before, there = untouched(sealed / "home"), sorted((sealed / "home").rglob("*.db"))
    for line in READING:
        code, out, err = command(*line.split(), "--home", "home")
        assert (code, err) == (0, ""), line
        assert "small" in out, line
    assert untouched(sealed / "home") == before
    assert sorted((sealed / "home").rglob("*.db")) == there


def test_a_command_that_writes_nothing_at_home_goes_on_without_a_log(tmp_path, unprivileged):
    tmp_path.chmod(0o555)
    try:
        with unprivileged():
            with pytest.raises(PermissionError), log_to(tmp_path):
                pass
            with log_to(tmp_path, needed=False):
                pass
    finally:
        tmp_path.chmod(0o755)


def test_a_read_only_storage_with_an_odd_name_and_an_unfinished_log_is_read(tmp_path, unprivileged):
    folder = tmp_path / "a #b%20?c"
    folder.mkdir()
    url = sqlite_url(folder / "studies.db")
    writer = open_storage(url)
    optuna.create_study(storage=writer, study_name="late")
    assert (folder / "studies.db-wal").stat().st_size
    folder.chmod(0o555)
    try:
        with unprivileged():
            found = open_storage(url, reading=True)
            assert optuna.get_all_study_names(found) == ["late"]
            found.engine.dispose()
    finally:
        folder.chmod(0o755)
        writer.engine.dispose()


@pytest.mark.parametrize("line", ["run spec.yaml", "auto --data demo --model demo --minutes 1", "ui"])
def test_where_no_home_can_be_made_is_one_line(sealed, command, line):
    os.mkdir("empty", mode=0o555)
    code, out, err = command(*line.split(), "--home", "empty/home")
    assert (code, out + err) == (74, f"error: empty/home: Permission denied; {WRITES}\n")


def test_a_home_that_is_a_file_is_one_line(tmp_path, command):
    (tmp_path / "home").touch()
    code, out, err = command("run", "demo", "--home", tmp_path / "home")
    assert (code, (out + err).count("\n")) == (74, 1)
    assert str(tmp_path / "home") in err
