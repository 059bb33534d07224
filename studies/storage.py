"""Where trials are kept: any Optuna storage URL; by default SQLite in the home folder.

SQLite runs in WAL mode with a busy timeout, so that a dashboard can read while a study writes. WAL with synchronous
NORMAL survives a killed process; only a power cut may lose the last commits.

Liveness: each worker holds a shared lock on a file in the home folder for as long as it lives. Whoever gets the lock
exclusively knows that no other worker of the study lives in this home, so that every RUNNING trial of this home is a
dead worker's. The kernel gives the lock back when a process dies, however it dies. A server may be shared by several
homes; there each trial is stamped with its home.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import socket
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy
from optuna.storages import RDBStorage
from optuna.trial import TrialState

from personalization.databases import is_sqlite, shown, sqlite_file, sqlite_url
from personalization.errors import UnavailableError
from personalization.files import locked

BUSY_TIMEOUT_S = 60
WORKER_LOST = "worker_lost"
STAMP = "home"
"""Trial attribute that tells whose trial it is, where one storage serves several homes."""


def storage_url(home: Path, url: str | None) -> str:
    """The given URL, or that of the home folder's `studies.db`."""
    return url or sqlite_url(home.resolve() / "studies.db")


def may_exist(url: str) -> bool:
    """Whether a storage may be there: no SQLite file is opened, and so made, that does not exist."""
    file = sqlite_file(url)
    return file is None or file.exists()


def open_storage(url: str) -> RDBStorage:
    """Open (and create) a storage. UnavailableError where it cannot be reached or is no Optuna database."""
    sqlite, name = is_sqlite(url), shown(url)
    engine_kwargs = {"connect_args": _patience(url)} if sqlite else {"pool_pre_ping": True}
    try:
        with _one_creator(sqlite_file(url)):
            storage = RDBStorage(url, engine_kwargs=engine_kwargs)
    except (
        sqlalchemy.exc.SQLAlchemyError,
        optuna.exceptions.StorageInternalError,
        RuntimeError,
        KeyError,
        ValueError,
    ) as error:
        raise UnavailableError(f"storage {name}: {_reason(error)}") from error
    except OSError as error:
        raise UnavailableError(f"storage {name}: {error.strerror}") from None
    except ImportError as error:
        raise UnavailableError(f"storage {name} needs a driver: {error}") from None
    if sqlite:
        sqlalchemy.event.listen(storage.engine, "connect", _configure_sqlite)
        storage.engine.dispose()
    return storage


def _patience(url: str) -> dict[str, Any]:
    """How long to wait for another writer of a SQLite file, where the URL does not tell."""
    return {} if "timeout" in sqlalchemy.make_url(url).query else {"timeout": BUSY_TIMEOUT_S}


@contextmanager
def _one_creator(file: Path | None) -> Iterator[None]:
    """Two processes that create the tables of one SQLite file at once would both fail."""
    if file is None:
        yield
        return
    with locked(file.with_name(f"{file.name}.lock")):
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


def home_stamp(home: Path, url: str) -> str | None:
    """What marks this home's trials in a storage that others may use; None for a file."""
    if is_sqlite(url):
        return None
    return hashlib.sha256(f"{socket.gethostname()}:{home.resolve()}".encode()).hexdigest()[:16]


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


def recover_lost_trials(study: optuna.Study, parameters: Collection[str], stamp: str | None) -> list[int]:
    """Fail the RUNNING trials of dead workers and put their parameters back in the queue; the numbers failed.

    Call only when no other worker of the study lives. Where `stamp` is given, only trials with it are this home's. The
    new trial starts clean: it inherits parameters, and neither constraints nor attributes. A trial that died while it
    was asked for, without all `parameters`, is left to the sampler, unless it came from a queue or a grid: those know
    their point. A crash in between repeats nothing, since a trial already retried is not queued again.
    """
    trials = study.get_trials(deepcopy=False)
    retried = {trial.user_attrs.get("retry_of") for trial in trials}
    lost = [t for t in trials if t.state == TrialState.RUNNING and t.user_attrs.get(STAMP) == stamp]
    for trial in lost:
        queued = trial.system_attrs.get("fixed_params", {})
        point = {**queued, **trial.params}
        if "grid_id" in trial.system_attrs and isinstance(study.sampler, optuna.samplers.GridSampler):
            grid = study.sampler
            point = dict(zip(grid._param_names, grid._all_grids[trial.system_attrs["grid_id"]], strict=True))
        if trial.number not in retried and (queued or set(point) == set(parameters)):
            study.enqueue_trial(point, user_attrs={"retry_of": trial.number})
        study._storage.set_trial_user_attr(trial._trial_id, "failure", WORKER_LOST)
        study._storage.set_trial_state_values(trial._trial_id, state=TrialState.FAIL)
    return [trial.number for trial in lost]
