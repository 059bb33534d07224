"""Who works on a study, and which of its trials nobody works on any more.

Each worker has a random id that is used once, and stamps the trials it takes with it. Its sign of life is an exclusive
`flock` on a file named after it: the kernel gives the lock back when a process dies, however it dies. Beside an SQLite
file the folder of these files is complete, whatever home a worker comes from: who holds no lock there is dead. A server
may be reached from several machines. There the folder lies in the home and tells of this home's workers, at once and
also after a restart; of the workers of other homes a lease in the storage tells.

Workers of one folder take turns: the one whose turn it is recovers trials, counts, asks for a trial and stamps it.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from optuna.trial import FrozenTrial, TrialState

from personalization.databases import sqlite_file
from studies.lease import Lease

WORKER = "worker"
"""Trial attribute: the id of the worker that measures it."""


class Workers:
    """This process among the workers of one study. `lease`: what tells of workers that have no file in `folder`."""

    def __init__(self, folder: Path, study_name: str, lease: Lease | None = None) -> None:
        self.id = secrets.token_hex(8)
        self._folder, self._study, self._lease = folder, _short_hash(study_name), lease
        self._turn: int | None = None
        self._life: int | None = None

    def __enter__(self) -> Workers:
        self._folder.mkdir(parents=True, exist_ok=True)
        with self.turn():
            self._life = os.open(self._path(self.id), os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
            fcntl.flock(self._life, fcntl.LOCK_EX)
            os.write(self._life, str(os.fstat(self._life).st_ino).encode())
        if self._lease is not None:
            self._lease.take(self.id)
        return self

    def __exit__(self, *_: object) -> None:
        if self._lease is not None:
            self._lease.give_back()
        self._path(self.id).unlink(missing_ok=True)
        for handle in (self._life, self._turn):
            if handle is not None:
                os.close(handle)
        self._life = self._turn = None

    def take_turn(self) -> None:
        """Wait until no other worker of the folder recovers or asks, and keep them from it."""
        if self._turn is None:
            self._turn = os.open(self._folder / f"{self._study}.turn", os.O_RDWR | os.O_CREAT, 0o644)
            fcntl.flock(self._turn, fcntl.LOCK_EX)
            if self._lease is not None:
                self._lease.asking = True

    def give_turn(self) -> None:
        """Let the next worker ask."""
        if self._turn is not None:
            os.close(self._turn)
            self._turn = None
            if self._lease is not None:
                self._lease.asking = False

    @contextmanager
    def turn(self) -> Iterator[None]:
        """A turn for what stands in the block."""
        self.take_turn()
        try:
            yield
        finally:
            self.give_turn()

    def alone(self) -> bool:
        """Whether no other worker of the study lives, as far as anybody can know. For use in a turn."""
        others = self._listed()
        if not all(map(self._dead, others)):
            return False
        return self._lease is None or self._lease.alone(besides=others)

    def lost(self, trials: list[FrozenTrial]) -> list[FrozenTrial]:
        """RUNNING trials that nobody works on. For use in a turn, while this worker runs no trial.

        A trial without a stamp died while it was asked for: where all workers take turns, nobody asks at present.
        """
        running = [trial for trial in trials if trial.state == TrialState.RUNNING]
        stamps = {trial.user_attrs.get(WORKER) for trial in running}
        dead = {stamp for stamp in stamps if stamp is not None and (stamp == self.id or self._dead(stamp))}
        unclaimed = {t.number for t in running if WORKER not in t.user_attrs}
        if unclaimed and self._lease is not None and not self.alone():
            unclaimed = {number for number in unclaimed if self._lease.unclaimed(number)}
        return [t for t in running if t.user_attrs.get(WORKER) in dead or t.number in unclaimed]

    def bury(self, trials: list[FrozenTrial]) -> None:
        """Forget the dead of this folder that have no RUNNING trial left. For use in a turn."""
        working = {trial.user_attrs.get(WORKER) for trial in trials if trial.state == TrialState.RUNNING}
        for worker in self._listed():
            if worker not in working and self._dead(worker):
                if self._lease is not None:
                    self._lease.end(worker)
                self._path(worker).unlink(missing_ok=True)

    def _path(self, worker: str) -> Path:
        return self._folder / f"{self._study}.{worker}.worker"

    def _listed(self) -> list[str]:
        """The other workers of this study that have a file here."""
        names = (path.name.split(".")[-2] for path in self._folder.glob(f"{self._study}.*.worker"))
        return [name for name in names if name != self.id]

    def _dead(self, worker: str) -> bool:
        """A file that somebody copied says nothing about its worker: it does not stand where it says it does."""
        try:
            handle = os.open(self._path(worker), os.O_RDONLY)
        except FileNotFoundError:
            return self._lease is None or self._lease.expired(worker)
        try:
            original = os.read(handle, 64) == str(os.fstat(handle).st_ino).encode()
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        finally:
            os.close(handle)
        return original or self._lease is None or self._lease.expired(worker)


def workers_of(home: Path, url: str, study_name: str) -> Workers:
    """The workers of a study, as this process finds them out: beside an SQLite file, else in its home and by lease."""
    if (file := sqlite_file(url)) is not None:
        return Workers(file.with_name(f"{file.name}.workers"), study_name)
    return Workers(home / "workers" / _short_hash(url), study_name, Lease(url, study_name))


def _short_hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
