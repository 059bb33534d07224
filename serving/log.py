"""Lines of JSON, appended to numbered files.

A record is one line. It is written whole, before anybody is told of it: a process that is killed loses none. What a
power cut may take is said by `sync`. A name says where a record stands,

    request = SEGMENT-OFFSET-NONCE, in hex; the nonce cannot be guessed

so that one is found with one read, and nothing is kept in memory. A file that is full is followed by the next one. A
last line without an end, of a power cut or a full disk, is cut off: nobody was told of it.
"""

from __future__ import annotations

import json
import logging
import math
import os
import secrets
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from personalization.data.dates import read_date
from personalization.errors import DataError, UnavailableError

log = logging.getLogger(__name__)

SEGMENT_BYTES = 64 << 20
"""Of a file, before the next one begins."""

Record = dict[str, Any]
ANSWER = {"log_probs": dict, "config": str}
NEEDED: dict[str, dict[str, type]] = {
    "questions": {
        **dict.fromkeys(("request", "user_id", "input", "at", "prior", "arm"), str),
        **dict.fromkeys(("known", "chars", "generation"), int),
        **ANSWER,
        "profile": list,
        "named": bool,
    },
    "feedback": {"of": str, "label": str},
    "shadow": {"of": str, **ANSWER},
}
"""Fields without which a line of a server's log says nothing."""
MEND = "restore the file, or take the line out"


class Log:
    """The files NAME-000001.jsonl, NAME-000002.jsonl, ... of a folder. One thread appends; any may read, or sync.

    `keep`: how many files stay; None: all.
    """

    def __init__(self, folder: Path, name: str, segment_bytes: int = SEGMENT_BYTES, keep: int | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.name, self._most, self._keep = folder, name, segment_bytes, keep
        found = segments(folder, name)
        self._number = found[-1][0] if found else 1
        self._file, self._end = _opened(self._path(self._number))
        self._dirty = False
        self._stays = threading.RLock()  # held while the present file must stay open

    def _path(self, number: int) -> Path:
        return self.folder / f"{self.name}-{number:06d}.jsonl"

    def append(self, records: Sequence[Mapping[str, Any]]) -> list[str]:
        """Write records, each with its `request`; their names. UnavailableError where the disk takes them not."""
        if self._end >= self._most:
            self._rotate()
        names, lines, at = [], [], self._end
        for record in records:
            name = f"{self._number:x}-{at:x}-{secrets.token_hex(4)}"
            line = json.dumps({"request": name, **record}, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"
            names.append(name)
            lines.append(line)
            at += len(line)
        self._write(b"".join(lines))
        self._end = at
        return names

    def _write(self, content: bytes) -> None:
        try:
            while content:
                content = content[os.write(self._file, content) :]
        except OSError as error:
            os.ftruncate(self._file, self._end)
            raise _unwritten(error) from None
        finally:
            self._dirty = True  # not before: a sync in between would forget the line

    def sync(self) -> None:
        """Have what was appended on the disk; UnavailableError where it fails."""
        with self._stays:
            if self._dirty:
                self._dirty = False
                try:
                    os.fsync(self._file)
                except OSError as error:
                    self._dirty = True
                    raise _unwritten(error) from None

    def _rotate(self) -> None:
        with self._stays:
            self.sync()
            before, following = self._file, self._number + 1
            self._file, self._end = _opened(self._path(following))
            self._number = following
            os.close(before)
        if self._keep is not None:
            for _, path in segments(self.folder, self.name)[: -self._keep]:
                path.unlink()

    def find(self, request: str) -> Record | None:
        """The record of this name, if there is one."""
        number, offset, _ = request.split("-")
        path = self._path(int(number, 16))
        if not path.exists() or int(offset, 16) >= path.stat().st_size:
            return None
        with path.open("rb") as file:
            file.seek(int(offset, 16))
            line = file.readline()
        if not line.startswith(f'{{"request":"{request}"'.encode()):
            return None
        record: Record = json.loads(line)
        return record

    def close(self) -> None:
        """Have everything on the disk, and give the file back."""
        with self._stays:
            self.sync()
            os.close(self._file)


def _opened(path: Path) -> tuple[int, int]:
    """A file to append to, with its name on the disk, and where its last whole line ends; what follows is cut off."""
    try:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            end = _whole(file)
            if end < os.fstat(file).st_size:
                log.warning("%s: its last line has no end and is cut off", path)
                os.ftruncate(file, end)
            folder = os.open(path.parent, os.O_RDONLY)
            os.fsync(folder)
            os.close(folder)
        except OSError:
            os.close(file)
            raise
    except OSError as error:
        raise _unwritten(error) from None
    return file, end


def _unwritten(error: OSError) -> UnavailableError:
    return UnavailableError(f"the log cannot be written: {error.strerror}")


def _whole(file: int) -> int:
    """Where the last line that has an end ends."""
    end = os.fstat(file).st_size
    while end > 0:
        begin = max(0, end - 65_536)
        at = os.pread(file, end - begin, begin).rfind(b"\n")
        if at >= 0:
            return begin + at + 1
        end = begin
    return 0


def segments(folder: Path, name: str) -> list[tuple[int, Path]]:
    """The files of a log, (number, path), oldest first."""
    found = [path for path in folder.glob(f"{name}-*.jsonl") if path.stem.rpartition("-")[2].isdigit()]
    return sorted((int(path.stem.rpartition("-")[2]), path) for path in found)


def records(folder: Path, name: str) -> Iterator[Record]:
    """The records of a log, oldest first, also while it is written; DataError for a line that is none."""
    return (record for _, _, record in placed(folder, name))


def placed(folder: Path, name: str) -> Iterator[tuple[Path, int, Record]]:
    """The records of a log, each with its file and the number of its line, from 1."""
    for _, path in segments(folder, name):
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if not line.endswith(b"\n"):
                    break  # it is being written
                try:
                    record = json.loads(line)
                except (RecursionError, ValueError):
                    raise DataError(f"{path}: line {number} is no JSON; {MEND}") from None
                if (problem := _problem(record, NEEDED.get(name, {}))) is not None:
                    raise DataError(f"{path}: line {number} {problem}; {MEND}")
                yield path, number, record


def _problem(record: Any, needed: Mapping[str, type]) -> str | None:
    """What is wrong with a line of a log that needs these fields."""
    if not isinstance(record, dict):
        return "is no record"
    for field, kind in needed.items():
        if not isinstance(record.get(field), kind):
            return f"has no {field}" if field not in record else f"has a {field} of another kind than {kind.__name__}"
    values = record["log_probs"].values() if "log_probs" in needed else ()
    if not all(isinstance(value, int | float) and value < math.inf for value in values):
        return "has a log-probability that is no number"
    return "has a time that cannot be read" if "at" in needed and read_date(record["at"]) is None else None
