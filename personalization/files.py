"""Files: written so that a reader sees the old content or the new, never a mix; locked; refused."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import re
import secrets
import shutil
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from personalization.errors import UsageError

DRAFT_S = 24 * 3600
"""A draft that has not changed for so many seconds is one of a writer that died."""
CLOSED = (errno.EACCES, errno.EPERM, errno.EROFS)
"""What the system says of a place that is not to be written."""
WRITES = "this command writes into its home folder: make that writable, or give --home another, such as a copy"


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """A file to write in the place of `path`: a new one beside it, then fsync, replace, fsync the folder.

    Where the writing fails, what stood there before stays, and the error names `path`. A file keeps its mode, a new one
    has what the umask leaves; behind a link it is the link's target that is replaced.
    """
    named, path = path, path.resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666), "wb") as file:
            if path.exists():
                os.fchmod(file.fileno(), stat.S_IMODE(path.stat().st_mode))
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
    except OSError as error:
        if error.filename in (None, str(draft)):
            raise OSError(error.errno, error.strerror, str(named)) from error
        raise
    finally:
        draft.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def copy_atomic(files: Path, target: Path) -> None:
    """Copy a folder to where nothing stands, in one step; what fails leaves nothing."""
    draft = target.with_name(f".{target.name}.{secrets.token_hex(8)}")
    try:
        shutil.copytree(files, draft)
        draft.rename(target)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def clear_drafts(folder: Path, names: str) -> None:
    """Remove the old drafts in a folder of files and folders with `names`, a regular expression."""
    draft, before = re.compile(rf"\.(?:{names})\.(?:[0-9a-f]{{8}}){{1,2}}"), time.time() - DRAFT_S
    for found in [path for path in folder.iterdir() if draft.fullmatch(path.name)]:
        with suppress(OSError):
            if found.lstat().st_ctime < before:
                shutil.rmtree(found) if found.is_dir() else found.unlink()


def write_atomic(path: Path, content: str | bytes) -> None:
    """Replace a file's content at once; see `atomic_file`."""
    with atomic_file(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


def write_arrays(path: Path, arrays: Mapping[str, NDArray[Any]], told: Mapping[str, str] | None = None) -> None:
    """Arrays by name as safetensors, with these strings in the header."""
    from safetensors.numpy import save

    content = save({name: np.ascontiguousarray(array) for name, array in arrays.items()}, dict(told or {}) or None)
    write_atomic(path, content)


def refuse_unwritable(out: Path, *read: str | Path | None) -> None:
    """UsageError where `out` is a folder, or is or lies in one of what is `read`; OSError where it cannot be made."""
    place = out.resolve()
    for source in read:
        if source is not None and place.is_relative_to(Path(source).resolve()):
            raise UsageError(f"--out {out} would write into {source}, which is read; give another place")
    if place.is_dir():
        raise UsageError(f"--out {out} is a folder; give a file")
    refuse_closed(place.parent)


def refuse_closed(folder: Path) -> None:
    """OSError where nothing can be written into a folder, or it cannot be made."""
    there = next(path for path in (folder, *folder.parents) if os.path.lexists(path))
    if not there.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(there))
    if not os.access(there, os.W_OK | os.X_OK, effective_ids=True):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(there))


def may_write(path: Path) -> bool:
    """Whether a file that is there may be changed by us, and files made beside it."""
    return all(os.access(place, os.W_OK, effective_ids=True) for place in (path, path.parent))


@contextmanager
def writing_home() -> Iterator[None]:
    """What cannot be written in a home folder also says what to do."""
    try:
        yield
    except OSError as error:
        if error.errno not in CLOSED:
            raise
        raise OSError(error.errno, f"{error.strerror}; {WRITES}", error.filename) from None


@contextmanager
def locked(path: Path, patience: Callable[[], None] | None = None) -> Iterator[None]:
    """Hold the lock of a file, which is made where there is none; waits for the process that has it.

    `patience` is called again and again meanwhile, and may raise.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        while patience is not None:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                patience()
        else:
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def sha256_of(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
