"""Where trials are kept: any Optuna storage URL; by default SQLite in the home folder.

SQLite runs in WAL mode with a busy timeout, so that a dashboard can read while a study writes. WAL with synchronous
NORMAL survives a killed process; only a power cut may lose the last commits.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from shlex import quote
from typing import Any

import optuna
import sqlalchemy
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial

from personalization.databases import is_sqlite, kept, sealed_url, shown, sqlite_file, sqlite_url, without_secrets
from personalization.errors import UnavailableError, first_line
from personalization.files import locked, may_write

BUSY_TIMEOUT_S = 60
SEALED = "make the file and its folder writable, or use a copy; `studies`, `show` and `insights` read it as it is"
STORAGE_ERRORS = (sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.StorageInternalError)
"""What a storage that fails in the middle raises."""
MYSQL = "SELECT COALESCE(GET_LOCK(MD5(CONCAT_WS('/', 'chamtune', DATABASE())), 60), 0)"
ASKED_FOR = {
    "postgresql": "SELECT pg_advisory_xact_lock(4849133670913) FROM set_config('lock_timeout', '60s', true)",
    "mysql": MYSQL,
    "mariadb": MYSQL,
}
"""How a server is asked for the lock of `one_creator`; it waits for a minute, and gives it back with the connection.
MySQL's locks are the whole server's, so that the name holds the database; null is a failure to get one."""

NARROW = (
    "SELECT table_name FROM information_schema.columns"
    " WHERE table_schema = DATABASE() AND column_name = 'value_json' AND data_type = 'text'"
)
"""MySQL's tables of attributes as Optuna makes them."""


def storage_url(home: Path, url: str | None) -> str:
    """The given URL, or that of the home folder's `studies.db`."""
    return url or sqlite_url(home.resolve() / "studies.db")


def whereabouts(home: Path, url: str | None) -> str:
    """The options that a printed command needs to find studies: the home folder, and their storage where it is
    elsewhere, without a password."""
    said = f" --home {quote(str(home.resolve()))}"
    if url is None or sqlite_file(url) == home.resolve() / "studies.db":
        return said
    return f"{said} --storage {quote(kept(url))}"


def may_exist(url: str) -> bool:
    """Whether a storage may be there: no SQLite file is opened, and so made, that does not exist."""
    file = sqlite_file(url)
    return file is None or file.exists()


def open_storage(url: str, reading: bool = False) -> RDBStorage:
    """Open (and create) a storage. UnavailableError where it cannot be reached or is no Optuna database.

    `reading`: a SQLite file that we may not write, or nothing beside it, is opened as it is.
    """
    sqlite, name, file = is_sqlite(url), shown(url), sqlite_file(url)
    engine_kwargs = {"connect_args": _patience(url)} if sqlite else {"pool_pre_ping": True}
    try:
        if file is not None and file.exists() and not may_write(file):
            if reading:
                return RDBStorage(sealed_url(file))
            raise UnavailableError(f"storage {name} cannot be written: {SEALED}")
        with one_creator(url):
            storage = RDBStorage(url, engine_kwargs=engine_kwargs)
            _widen(storage.engine)
    except (
        sqlalchemy.exc.SQLAlchemyError,
        optuna.exceptions.StorageInternalError,
        RuntimeError,
        KeyError,
        ValueError,
    ) as error:
        raise UnavailableError(f"storage {name}: {without_secrets(reason(error), url)}") from error
    except OSError as error:
        raise UnavailableError(f"storage {name}: {error.strerror}") from None
    except ImportError as error:
        raise UnavailableError(f"storage {name} needs a driver: {error}") from None
    if sqlite:
        sqlalchemy.event.listen(storage.engine, "connect", _configure_sqlite)
        storage.engine.dispose()
    return storage


def _widen(engine: sqlalchemy.Engine) -> None:
    """Make room in MySQL for attributes of more than 65,535 bytes, such as a look at 4,100 questions."""
    if engine.dialect.name not in ("mysql", "mariadb"):
        return
    with engine.begin() as connection:
        for (table,) in connection.exec_driver_sql(NARROW).all():
            connection.exec_driver_sql(f"ALTER TABLE `{table}` MODIFY value_json LONGTEXT")


@contextmanager
def uncollected() -> Iterator[None]:
    """Without the cyclic garbage collector, which walks over the hundreds of thousands of objects that a study of
    10,000 trials is read through again and again, and frees none (1.6 s without it, 3.8 s with it)."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


@uncollected()
def trials_of(study: optuna.Study) -> list[FrozenTrial]:
    """All trials of a study as its storage has them, not to be changed."""
    return study.get_trials(deepcopy=False)


def _patience(url: str) -> dict[str, Any]:
    """How long to wait for another writer of a SQLite file, where the URL does not tell."""
    return {} if "timeout" in sqlalchemy.make_url(url).query else {"timeout": BUSY_TIMEOUT_S}


@contextmanager
def one_creator(url: str) -> Iterator[None]:
    """Whoever creates tables or a study in the same storage waits for the end of the block.

    Two that create the tables at once would both fail, and of two that create one study each would take it for its own.
    """
    if (file := sqlite_file(url)) is not None:
        with locked(file.with_name(f"{file.name}.lock")):
            yield
    elif (asked := ASKED_FOR.get(sqlalchemy.make_url(url).get_backend_name())) is not None:
        with sqlalchemy.create_engine(url, poolclass=sqlalchemy.NullPool).begin() as connection:
            if connection.exec_driver_sql(asked).scalar() == 0:
                raise optuna.exceptions.StorageInternalError("another process has been creating here for a minute")
            yield
    else:
        yield


def _configure_sqlite(connection: Any, _record: object) -> None:
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=NORMAL")
    cursor.close()


def reason(error: BaseException) -> str:
    """The first line of what the driver said."""
    found: BaseException | None = error
    while found is not None:
        if (said := getattr(found, "orig", None)) is not None:
            return first_line(said)
        found = found.__cause__ or found.__context__
    return first_line(error)
