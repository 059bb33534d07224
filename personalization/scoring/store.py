"""Score tables on disk, addressed by everything they depend on.

A finished table is a safetensors file named by the SHA-256 of its key, with the SHA-256 of its content in the header. A
damaged file is named in a warning and computed anew; it is never used.

While a table is computed, its batches are appended to a journal beside it, each with a checksum. A killed pass goes on
from its journal: what is lost is the batch that was running. The journal is locked by the process that computes; a
second process that wants the same table waits for it, and goes on with the journal if the first one dies.

The folder has a size limit. When a table is written, those that nobody has read for longest are removed until the rest
fits.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import struct
import time
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from personalization.errors import UsageError
from personalization.files import write_atomic

log = logging.getLogger(__name__)

Table = NDArray[np.float32]
Progress = Callable[[int, int], None]
"""Called with what is done, and of how much."""
Keep = Callable[[NDArray[np.int64], Table], None]
Compute = Callable[[Table, Keep], Any]
"""(table with NaN where nothing is known, what to call after each batch) -> what the pass says of itself, JSON-able."""

LIMIT_VARIABLE = "CHAMTUNE_CACHE_GB"
DEFAULT_LIMIT_GB = 20.0
STALE_SECONDS = 86_400
"""After a day, the temporary file of a killed process is removed."""

BESIDE = {".states": (".json",), ".rows": (".texts",)}
"""What goes with a file that is removed."""
_RECORD = struct.Struct("<II")


def key_of(parts: Mapping[str, Any]) -> str:
    """Hex SHA-256 of a JSON-able key."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def stored_table(folder: Path, key: str, shape: tuple[int, int], compute: Compute) -> tuple[Table, Any]:
    """(table, what the pass said of itself) under `key`, computed and stored on first use.

    `compute` fills the table that it is given, in place. Raises UsageError where the size limit is not a number.
    """
    limit = size_limit()
    path = folder / f"{key}.safetensors"
    found = _read(path)
    if found is not None:
        return found
    folder.mkdir(parents=True, exist_ok=True)
    with _journal(folder / f"{key}.partial") as journal:
        found = _read(path, warn=False)
        if found is not None:
            Path(journal.name).unlink(missing_ok=True)
            return found
        table = np.full(shape, np.nan, dtype=np.float32)
        _replay(journal, table)
        told = compute(table, lambda rows, scores: _append(journal, rows, scores))
        header = {"told": json.dumps(told, sort_keys=True)}
        header["sha256"] = _digest(table, header["told"])
        write_atomic(path, save({"scores": table}, metadata=header))
        Path(journal.name).unlink(missing_ok=True)
    evict(folder, limit, path)
    return table, told


def size_limit() -> int:
    """Bytes that a folder of tables may take: CHAMTUNE_CACHE_GB, or 20 GB."""
    text = os.environ.get(LIMIT_VARIABLE, str(DEFAULT_LIMIT_GB))
    try:
        return int(float(text) * 1e9)
    except (ValueError, OverflowError):
        raise UsageError(f"{LIMIT_VARIABLE}={text!r} is no number; give gigabytes, as in {LIMIT_VARIABLE}=20") from None


def evict(folder: Path, limit: int, newest: Path) -> list[Path]:
    """Remove the least recently used files until the folder fits; never `newest`, nor a journal in use.

    Only files that this module writes are looked at. What cannot be removed stays, and is logged.
    """
    entries: list[tuple[float, int, Path]] = []
    for pattern in ("*.safetensors", "*.partial", "*.states", "*.rows", ".*.safetensors.*", ".*.states.*"):
        for path in folder.glob(pattern):
            with suppress(OSError):
                stat = path.stat()
                if path.name.startswith("."):
                    if time.time() - stat.st_mtime > STALE_SECONDS:
                        path.unlink()
                else:
                    entries.append((stat.st_mtime, stat.st_size, path))
    total, removed = sum(size for _, size, _ in entries), []
    for _, size, path in sorted(entries):
        if total <= limit:
            break
        if path != newest and _remove(path):
            removed.append(path)
            total -= size
    if removed:
        log.info("%d files not read for longest were removed from %s", len(removed), folder)
    return removed


def _remove(path: Path) -> bool:
    """Remove a file, unless another process holds it locked or owns it."""
    try:
        with (path.with_suffix(".lock") if path.suffix == ".rows" else path).open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
            for beside in BESIDE.get(path.suffix, ()):
                path.with_suffix(beside).unlink(missing_ok=True)
    except OSError as error:
        log.info("%s stays: %s", path, error.strerror)
        return False
    return True


def _digest(table: Table, told: str) -> str:
    return hashlib.sha256(f"{table.shape} {told} ".encode() + table.tobytes()).hexdigest()


def _read(path: Path, warn: bool = True) -> tuple[Table, Any] | None:
    """A stored table, or None where there is none or it is damaged. Reading it marks it as used."""
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="numpy") as file:
            table: Table = file.get_tensor("scores")
            header = file.metadata()
            told = json.loads(header["told"])
            intact = header["sha256"] == _digest(table, header["told"])
        if intact:
            with suppress(OSError):
                os.utime(path)
            return table, told
    except FileNotFoundError:
        return None
    except (SafetensorError, OSError, KeyError, TypeError, ValueError):
        pass
    if warn:
        warnings.warn(f"{path} is damaged; the scores are computed anew", stacklevel=3)
    return None


@contextmanager
def _journal(path: Path) -> Iterator[BinaryIO]:
    """The journal at `path`, locked. Waits for a process that computes the same table."""
    while True:
        with path.open("a+b", buffering=0) as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                log.info("another process computes the same scores; waiting for it")
                fcntl.flock(file, fcntl.LOCK_EX)
            if _is_at(path, file):
                yield file
                return


def _is_at(path: Path, file: BinaryIO) -> bool:
    """Whether an open file still stands at a path: it may have been removed while its lock was waited for."""
    try:
        return path.stat().st_ino == os.fstat(file.fileno()).st_ino
    except FileNotFoundError:
        return False


def _append(journal: BinaryIO, rows: NDArray[np.int64], scores: Table) -> None:
    payload = rows.astype("<i4").tobytes() + scores.astype("<f4").tobytes()
    journal.write(_RECORD.pack(len(rows), zlib.crc32(payload)) + payload)


def _replay(journal: BinaryIO, table: Table) -> None:
    """Fill a table from the intact records of its journal, and cut off what follows them."""
    journal.seek(0)
    data, at = journal.read(), 0
    while len(data) - at >= _RECORD.size:
        count, checksum = _RECORD.unpack_from(data, at)
        end = at + _RECORD.size + 4 * count * (1 + table.shape[1])
        payload = data[at + _RECORD.size : end]
        if end > len(data) or count == 0 or zlib.crc32(payload) != checksum:
            break
        rows = np.frombuffer(payload, "<i4", count)
        table[rows] = np.frombuffer(payload, "<f4", offset=4 * count).reshape(count, -1)
        at = end
    if at < len(data):
        log.warning("%s: the last %d bytes are damaged; their scores are computed anew", journal.name, len(data) - at)
    journal.truncate(at)
    if at:
        known = int((~np.isnan(table).any(axis=1)).sum())
        log.info("%d of %d prompts were scored by an earlier pass; going on from there", known, len(table))
