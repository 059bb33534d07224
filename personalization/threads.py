"""Cores shared among the live processes of a user that compute on one machine.

Libraries take a thread for each core. Two processes that do so slow each other down far beyond half: a thread that
waits for its fellows spins on the core that they need. So each process that runs forward passes holds the lock of a
slot, a file in a folder of the user, counts the slots that others hold, and takes its part of the threads. The kernel
gives a lock back when its process dies, however it dies. A process that has not computed for `IDLE_S` is not counted,
nor is one that is bound to other cores. What the user says with `CHOSEN` stands. The number of threads may move a score
in its last bits.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import stat
import sys
import tempfile
import time
from functools import cache
from itertools import count
from pathlib import Path

log = logging.getLogger(__name__)

CHOSEN = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
SPINS = "1000"
"""Rounds of waiting: longer than between two steps of a pass, shorter than anybody else's turn on the core."""
LOOK_S = 1.0
"""Others are counted this often."""
IDLE_S = 600.0
"""Longer than any batch takes."""


def wait_briefly() -> None:
    """Let OpenMP threads spin for some microseconds while they wait and then sleep, unless the user says otherwise.

    Call before torch is imported. Threads that spin on are many times slower on a machine that others share; those that
    sleep at once cost a lone process a third of its speed (`benchmarks/workers.py`).
    """
    if not any(name in os.environ for name in WAITING):
        os.environ["GOMP_SPINCOUNT"] = SPINS


def share_cores() -> None:
    """Take this process's part of the cores, where it has changed. Call before each batch: it looks once a second."""
    _share_of(os.getpid()).update()


@cache
def _share_of(_pid: int) -> Share:
    """One for each process: a fork has its own."""
    return Share(_folder())


class Share:
    """This process's slot, and its number of threads of torch, OpenMP and BLAS."""

    def __init__(self, folder: Path | None) -> None:
        import torch

        self._slots = None if folder is None else Slots(folder)
        self._all = self._threads = torch.get_num_threads()
        self._modules = 0
        self._looked = float("-inf")

    def update(self) -> None:
        """Count the others, once in `LOOK_S`, and set the threads, also of libraries that were loaded since."""
        now = time.monotonic()
        if self._slots is None or now - self._looked < LOOK_S:
            return
        self._looked = now
        threads = max(1, self._all // (1 + self._slots.others()))
        if threads == self._threads and (threads == self._all or len(sys.modules) == self._modules):
            return
        if any(name in os.environ for name in CHOSEN):
            return
        if threads != self._threads:
            log.info("%d of %d threads", threads, self._all)
        _set_threads(threads)
        self._threads, self._modules = threads, len(sys.modules)


def _set_threads(threads: int) -> None:
    """Of every library that is loaded by now."""
    import torch
    from threadpoolctl import ThreadpoolController

    torch.set_num_threads(threads)
    ThreadpoolController().limit(limits=threads)


class Slots:
    """The slots of a folder, of which this process holds one as long as it lives."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._cores = _cores()
        for number in count():
            self._own = folder / f"{number}.slot"
            self._handle = os.open(self._own, os.O_RDWR | os.O_CREAT, 0o600)
            if _lock(self._handle, fcntl.LOCK_EX):
                break
            os.close(self._handle)
        os.ftruncate(self._handle, 0)
        os.pwrite(self._handle, json.dumps(self._cores).encode(), 0)

    def others(self) -> int:
        """How many other processes hold a slot, have computed of late, and may use cores of this one."""
        os.utime(self._handle)
        return sum(self._is_rival(path) for path in self._folder.glob("*.slot") if path != self._own)

    def _is_rival(self, path: Path) -> bool:
        with path.open("rb") as slot:
            if _lock(slot.fileno(), fcntl.LOCK_SH) or time.time() - os.fstat(slot.fileno()).st_mtime > IDLE_S:
                return False
            cores = slot.read()
        return not cores or not set(json.loads(cores)).isdisjoint(self._cores)


def _cores() -> list[int]:
    """The cores that this process may use, where the system tells."""
    return sorted(os.sched_getaffinity(0)) if sys.platform == "linux" else list(range(os.cpu_count() or 1))


def _lock(handle: int, kind: int) -> bool:
    """Whether a lock could be had at once."""
    try:
        fcntl.flock(handle, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _folder() -> Path | None:
    """The user's folder of slots; None, and a line in the log, where there cannot be one that only the user writes."""
    folder = Path(tempfile.gettempdir()) / f"chamtune-{os.getuid()}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
    except OSError as error:
        log.warning("cores are not shared with other processes: %s: %s", folder, error.strerror)
        return None
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
        log.warning("cores are not shared with other processes: %s is not this user's folder alone", folder)
        return None
    return folder
