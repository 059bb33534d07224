"""Where trials are kept: any Optuna storage URL; by default SQLite in the home folder.

SQLite runs in WAL mode with a busy timeout, so that a dashboard can read while a study writes. WAL with synchronous
NORMAL survives a killed process; only a power cut may lose the last commits.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy
from optuna.storages import RDBStorage

from personalization.errors import UnavailableError, first_line
from personalization.files import locked

BUSY_TIMEOUT_S = 60
STORAGE_ERRORS = (sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.StorageInternalError)
"""What a storage that fails in the middle raises."""


def storage_url(home: Path, url: str | None) -> str:
    """The given URL, or that of the home folder's `studies.db`."""
    return url or f"sqlite:///{home.resolve() / 'studies.db'}"


def open_storage(url: str) -> RDBStorage:
    """Open (and create) a storage. UnavailableError where it cannot be reached or is no Optuna database."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    is_sqlite = url.startswith("sqlite")
    engine_kwargs = {"connect_args": {"timeout": BUSY_TIMEOUT_S}} if is_sqlite else {"pool_pre_ping": True}
    try:
        with _one_creator(url if is_sqlite else None):
            storage = RDBStorage(url, engine_kwargs=engine_kwargs)
    except (sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.StorageInternalError, RuntimeError, KeyError) as error:
        raise UnavailableError(f"storage {_without_password(url)}: {reason(error)}") from error
    except OSError as error:
        raise UnavailableError(f"storage {_without_password(url)}: {error.strerror}") from None
    except ImportError as error:
        raise UnavailableError(f"storage {_without_password(url)} needs a driver: {error}") from None
    if is_sqlite:
        sqlalchemy.event.listen(storage.engine, "connect", _configure_sqlite)
        storage.engine.dispose()
    return storage


@contextmanager
def _one_creator(sqlite_url: str | None) -> Iterator[None]:
    """Two processes that create the tables of one SQLite file at once would both fail."""
    if sqlite_url is None:
        yield
        return
    path = Path(sqlite_url.removeprefix("sqlite:///"))
    with locked(path.with_name(f"{path.name}.lock")):
        yield


def _configure_sqlite(connection: Any, _record: object) -> None:
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=NORMAL")
    cursor.close()


def reason(error: BaseException) -> str:
    """The first line of what the driver said."""
    cause = error.__cause__ or error
    return first_line(getattr(cause, "orig", None) or cause)


def _without_password(url: str) -> str:
    try:
        return sqlalchemy.make_url(url).render_as_string(hide_password=True)
    except sqlalchemy.exc.ArgumentError:
        return url
