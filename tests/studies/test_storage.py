import json
import sqlite3
import subprocess
import sys
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from types import SimpleNamespace

import optuna
import psycopg
import pytest
import yaml

from personalization.errors import UnavailableError, UsageError
from studies import storage
from studies.foreign import Mapped, import_rows
from studies.storage import one_creator, open_storage, storage_url, whereabouts
from studies.study import open_study

SERVERS = [pytest.param(name, marks=[pytest.mark.slow, pytest.mark.timeout(300)]) for name in ("postgresql", "mariadb")]


@pytest.fixture(params=["sqlite", *SERVERS])
def shared(request, tmp_path):
    """The URL of an empty storage that several homes share."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'shared.db'}"
    return request.getfixturevalue(request.param)(f"d{uuid.uuid4().hex}")


def at_once(*calls):
    """What calls give, or raise, that begin together."""
    ready = threading.Barrier(len(calls))
    with ThreadPoolExecutor(len(calls)) as pool:
        begun = [pool.submit(lambda call=call: (ready.wait(), call())[1]) for call in calls]
    return [each.exception() or each.result() for each in begun]


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
        ("mssql+pymssql://u:secret@127.0.0.1/x", "needs a driver"),
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


def test_the_first_who_open_a_storage_wait_for_each_other(shared):
    opened = at_once(*[lambda: open_storage(shared)] * 4)
    assert [storage.get_all_studies() for storage in opened] == [[]] * 4


@pytest.fixture
def met(monkeypatch):
    """Whoever makes a study's id waits a moment for another one that makes one, too."""
    both, real = threading.Barrier(2), uuid.uuid4

    def made():
        with suppress(threading.BrokenBarrierError):
            both.wait(1)
        return real()

    monkeypatch.setattr("studies.study.uuid", SimpleNamespace(uuid4=made))


@pytest.mark.usefixtures("kept_scores", "met")
def test_of_two_who_begin_a_study_one_makes_it(shared, spec_of, tmp_path):
    specs = [spec_of(storage=shared, constraints={"entropy": f">= 0.{digit}"}) for digit in (5, 6)]
    found = at_once(*(lambda s=s, home=tmp_path / str(n): open_study(s, home) for n, s in enumerate(specs)))
    (refused,) = [each for each in found if isinstance(each, Exception)]
    assert isinstance(refused, UsageError)
    assert "was made with something else: spec.constraints.entropy: >= 0." in str(refused)
    (opened,) = [each for each in found if each is not refused]
    assert opened.study.user_attrs["chamtune"]["spec"]["constraints"] == opened.spec.constraints
    with pytest.raises(UsageError, match="was made with something else"):
        open_study(specs[1 - specs.index(opened.spec)], tmp_path / "third")


@pytest.mark.usefixtures("kept_scores", "met")
def test_two_who_begin_the_same_study_have_one_record(shared, spec_of, tmp_path):
    one, other = at_once(*(lambda n=n: open_study(spec_of(storage=shared), tmp_path / str(n)) for n in range(2)))
    assert one.record["id"] == other.record["id"] == one.study.user_attrs["chamtune"]["id"]


def test_of_an_import_and_a_run_of_one_name_one_is_refused(shared, spec_of, tmp_path):
    rows, mapped = [{"x": 1, "y": 2.0}, {"x": 2, "y": 1.0}], Mapped("y")
    kept = import_rows(rows, mapped, "small", (tmp_path, shared))
    assert kept["complete"] == 2
    with pytest.raises(UsageError, match="not made by chamtune"):
        open_study(spec_of(storage=shared), tmp_path)
    found = at_once(*[lambda: import_rows(rows, mapped, "twice", (tmp_path, shared))] * 2)
    (refused,) = [each for each in found if isinstance(each, Exception)]
    assert isinstance(refused, UsageError)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_who_waits_too_long_for_a_creator_is_told(postgresql, monkeypatch):
    url = postgresql("held")
    asked = "SELECT pg_advisory_xact_lock(4849133670913) FROM set_config('lock_timeout', '50ms', true)"
    monkeypatch.setattr("studies.storage.ASKED_FOR", {"postgresql": asked})
    with one_creator(url), pytest.raises(UnavailableError, match="lock timeout"):
        open_storage(url)
    open_storage(url)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_study_lives_in_postgresql(tmp_path, spec_of, postgresql):
    url = postgresql("lived_in")
    path = tmp_path / "spec.yaml"
    for trials in (4, 6):
        path.write_text(yaml.safe_dump(spec_of(storage=url, trials=trials).model_dump(mode="json")))
        run = [sys.executable, "-m", "cli", "run", str(path), "--home", str(tmp_path / "home"), "--json"]
        done = subprocess.run(run, capture_output=True, text=True)
        assert done.returncode in (0, 1), done.stderr
        assert json.loads(done.stdout.splitlines()[-1])["trials"] == trials
    with psycopg.connect(url.replace("+psycopg", "")) as database:
        (states,) = database.execute(
            "SELECT array_agg(state::text) FROM trials JOIN studies USING (study_id) WHERE study_name = 'small'"
        ).fetchone()
    assert states == ["COMPLETE"] * 6
    assert not (tmp_path / "home" / "studies.db").exists()


def test_a_look_at_many_questions_stays_whole(shared):
    study = optuna.create_study(storage=open_storage(shared), study_name="long")
    questions = [f"{number:012x}" for number in range(100_000)]
    trial = study.ask()
    trial.set_user_attr("line", questions)
    study.set_user_attr("kept", questions)
    again = optuna.load_study(study_name="long", storage=open_storage(shared))
    assert again.trials[0].user_attrs["line"] == again.user_attrs["kept"] == questions


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_lock_of_mysql_is_of_one_database_and_ends(mariadb, monkeypatch):
    one, other = mariadb("held"), mariadb("free")
    monkeypatch.setattr(storage, "ASKED_FOR", {"mysql": storage.MYSQL.replace("60", "0.05")})
    with one_creator(one):
        open_storage(other)
        with pytest.raises(UnavailableError, match="another process has been creating here for a minute"):
            open_storage(one)
    assert open_storage(one).get_all_studies() == []
