"""Where trials are kept: any Optuna storage URL; by default SQLite in the home folder.

SQLite runs in WAL mode with a busy timeout, so that a dashboard can read while a study writes. WAL with synchronous
NORMAL survives a killed process; only a power cut may lose the last commits.

Liveness: each worker holds a shared lock on a file of its study for as long as it lives. Whoever gets the lock
exclusively knows that no other worker lives, so that every RUNNING trial is a dead worker's. The kernel gives the lock
back when a process dies, however it dies. This covers the workers of one machine.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy
from optuna.storages import RDBStorage
from optuna.trial import TrialState

from personalization.errors import UnavailableError

BUSY_TIMEOUT_S = 60
WORKER_LOST = "worker_lost"


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
        raise UnavailableError(f"storage {_without_password(url)}: {_reason(error)}") from error
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
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(f"{path.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _configure_sqlite(connection: Any, _record: object) -> None:
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=NORMAL")
    cursor.close()


def _reason(error: BaseException) -> str:
    cause = getattr(error, "orig", None) or error.__cause__ or error
    text = str(cause).strip().splitlines()
    return text[0] if text else type(error).__name__


def _without_password(url: str) -> str:
    try:
        return sqlalchemy.make_url(url).render_as_string(hide_password=True)
    except sqlalchemy.exc.ArgumentError:
        return url


class WorkerLock:
    """This worker's sign of life for one study. `alone` says whether no other worker lived when it was taken.

    While it is exclusive, other workers of the study wait; `share` lets them in once recovery is done.
    """

    def __init__(self, home: Path, url: str, study_name: str) -> None:
        folder = home / "locks"
        folder.mkdir(parents=True, exist_ok=True)
        name = hashlib.sha256(f"{url}\n{study_name}".encode()).hexdigest()[:32]
        self._handle = os.open(folder / f"{name}.lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self.alone = True
        except BlockingIOError:
            fcntl.flock(self._handle, fcntl.LOCK_SH)
            self.alone = False

    def share(self) -> None:
        """Let other workers in."""
        fcntl.flock(self._handle, fcntl.LOCK_SH)

    def __enter__(self) -> WorkerLock:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._handle)


def recover_lost_trials(study: optuna.Study) -> list[int]:
    """Fail every RUNNING trial of dead workers and put its parameters back in the queue; the numbers failed.

    Call only when no other worker of the study lives. The new trial starts clean: it inherits parameters, and neither
    constraints nor attributes. A crash in between repeats nothing, since a trial already retried is not queued again.
    """
    trials = study.get_trials(deepcopy=False)
    retried = {trial.user_attrs.get("retry_of") for trial in trials}
    lost = [trial for trial in trials if trial.state == TrialState.RUNNING]
    for trial in lost:
        if trial.number not in retried and set(trial.params) == set(trial.distributions) and trial.params:
            study.enqueue_trial(trial.params, user_attrs={"retry_of": trial.number})
        study._storage.set_trial_user_attr(trial._trial_id, "failure", WORKER_LOST)
        study._storage.set_trial_state_values(trial._trial_id, state=TrialState.FAIL)
    return [trial.number for trial in lost]
