"""One row of numbers a text, kept by the text: what was computed once is read, in whichever list it comes again.

On disk two files grow together: rows as raw float32, and a record a row with the digest of its text and the checksum
of its numbers. Rows that are damaged are computed anew. What is computed is written batch by batch, so that a killed
pass goes on from there; a second process that wants rows meanwhile waits for it. The folder keeps to its size limit
(`scoring.store`). The latest rows stay in memory, without a folder nothing else does.
"""

from __future__ import annotations

import hashlib
import logging
import os
import struct
import zlib
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from personalization.files import locked
from personalization.scoring.store import Keep, evict, size_limit

log = logging.getLogger(__name__)

IN_MEMORY = 65_536
"""Rows that stay in memory."""
_RECORD = struct.Struct("<16sI")

Rows = NDArray[np.float32]
Compute = Callable[[list[str], Keep], None]
"""(texts that are not known, what to call with their numbers and rows, for all of them, in parts or at once)."""


class TextRows:
    """Rows float32 [d] by text. `path`: where they lie, without a suffix; None: in memory alone; `most`: how many stay
    in memory."""

    def __init__(self, path: Path | None, width: int, most: int = IN_MEMORY) -> None:
        self.path, self.width, self._most = path, width, most
        self._latest: OrderedDict[bytes, Rows] = OrderedDict()
        self._places: dict[bytes, tuple[int, int]] = {}
        self._file, self._read_to = 0, 0

    def of(self, texts: Sequence[str], compute: Compute) -> Rows:
        """The rows of texts, float32 [n, d]; `compute` is called with those texts that are not known, each once."""
        rows_of = _places(texts)
        out = np.empty((len(texts), self.width), dtype=np.float32)
        missing = self._fill(out, rows_of, list(rows_of))
        if missing and self.path is None:
            self._computed(missing, rows_of, texts, out, compute)
        elif missing:
            rows, _ = self._files()
            with locked(rows.with_suffix(".lock")):
                if missing := self._fill(out, rows_of, missing):  # others may have written some
                    self._computed(missing, rows_of, texts, out, compute)
            evict(rows.parent, size_limit(), rows)
        for key, own in rows_of.items() if self._most else ():
            self._latest[key] = out[own[0]].copy() if key not in self._latest else self._latest[key]
            self._latest.move_to_end(key)
        while len(self._latest) > self._most:
            self._latest.popitem(last=False)
        return out

    def known(self, texts: Sequence[str]) -> tuple[Rows, NDArray[np.bool_]]:
        """(rows of texts [n, d], which of them are known [n]); nothing is computed."""
        rows_of, there = _places(texts), np.ones(len(texts), dtype=np.bool_)
        out = np.empty((len(texts), self.width), dtype=np.float32)
        for key in self._fill(out, rows_of, list(rows_of)):
            there[rows_of[key]] = False
        return out, there

    def _computed(
        self, missing: list[bytes], rows_of: dict[bytes, list[int]], texts: Sequence[str], out: Rows, compute: Compute
    ) -> None:
        def keep(numbers: NDArray[np.int64], found: Rows) -> None:
            own = [missing[number] for number in numbers]
            for key, row in zip(own, found, strict=True):
                out[rows_of[key]] = row
            if self.path is not None:
                self._append(own, found)

        compute([texts[rows_of[key][0]] for key in missing], keep)

    def _fill(self, out: Rows, rows_of: dict[bytes, list[int]], keys: list[bytes]) -> list[bytes]:
        """Write what is known of these keys into `out`; those of which nothing is."""
        elsewhere = []
        for key in keys:
            if key in self._latest:
                out[rows_of[key]] = self._latest[key]
            else:
                elsewhere.append(key)
        if self.path is None or not elsewhere or not self._read():
            return elsewhere
        missing, size = [], 4 * self.width
        path, _ = self._files()
        with path.open("rb") as file:
            for key in elsewhere:
                place, checksum = self._places.get(key, (-1, 0))
                raw = b"" if place < 0 else os.pread(file.fileno(), size, place * size)
                if len(raw) == size and zlib.crc32(raw) == checksum:
                    out[rows_of[key]] = np.frombuffer(raw, dtype="<f4")
                    continue
                missing.append(key)
                if self._places.pop(key, None) is not None:
                    log.warning("%s: a row is damaged; it is computed anew", path)
        with suppress(OSError):
            os.utime(path)  # it was read
        return missing

    def _files(self) -> tuple[Path, Path]:
        assert self.path is not None
        return self.path.with_suffix(".rows"), self.path.with_suffix(".texts")

    def _read(self) -> bool:
        """Take over records that were written since, by whomever; whether there are any."""
        rows, records = self._files()
        try:
            found, size = rows.stat(), records.stat().st_size
        except FileNotFoundError:
            self._places, self._read_to = {}, 0
            return False
        count = min(size // _RECORD.size, found.st_size // (4 * self.width))
        if found.st_ino != self._file or count < self._read_to:
            self._places, self._file, self._read_to = {}, found.st_ino, 0
        with records.open("rb") as told:
            told.seek(self._read_to * _RECORD.size)
            data = told.read((count - self._read_to) * _RECORD.size)
        for place, (key, checksum) in enumerate(_RECORD.iter_unpack(data), start=self._read_to):
            self._places[key] = place, checksum
        self._read_to = count
        return True

    def _append(self, keys: Sequence[bytes], found: Rows) -> None:
        rows, records = self._files()
        with records.open("ab") as told, rows.open("ab") as numbers:
            count = min(told.tell() // _RECORD.size, numbers.tell() // (4 * self.width))
            told.truncate(count * _RECORD.size)  # what a killed process left half written
            numbers.truncate(count * 4 * self.width)
            for key, row in zip(keys, found, strict=True):
                raw = np.ascontiguousarray(row, dtype="<f4").tobytes()
                numbers.write(raw)
                told.write(_RECORD.pack(key, zlib.crc32(raw)))


def _places(texts: Sequence[str]) -> dict[bytes, list[int]]:
    """Digest -> the rows of that text."""
    found: dict[bytes, list[int]] = {}
    for row, text in enumerate(texts):
        found.setdefault(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:16], []).append(row)
    return found
