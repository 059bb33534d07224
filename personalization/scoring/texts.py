"""One row of numbers a text, kept by the text: what was embedded once is read, in whichever list it comes again.

On disk two files grow together: rows as raw float32, and a record a row with the digest of its text and the checksum
of its numbers. Rows that are damaged are computed anew. Without a folder the latest rows stay in memory.
"""

from __future__ import annotations

import hashlib
import logging
import struct
import zlib
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from personalization.files import locked

log = logging.getLogger(__name__)

IN_MEMORY = 65_536
"""Texts whose rows stay in memory where nothing is written."""
_RECORD = struct.Struct("<16sI")

Compute = Callable[[list[str]], NDArray[np.float32]]


class TextRows:
    """Rows float32 [d] by text. `path`: where they lie, without a suffix; None: in memory alone."""

    def __init__(self, path: Path | None, width: int) -> None:
        self.path, self.width = path, width
        self._rows: OrderedDict[bytes, NDArray[np.float32]] = OrderedDict()
        self._read_to = 0

    def of(self, texts: Sequence[str], compute: Compute) -> NDArray[np.float32]:
        """The rows of texts, float32 [n, d]; `compute` is called once, with the texts that are not known."""
        keys = [hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:16] for text in texts]
        if self.path is not None:
            self._read()
        missing = {key: text for key, text in zip(keys, texts, strict=True) if key not in self._rows}
        if missing:
            found = compute(list(missing.values()))
            if self.path is not None:
                self._append(list(missing), found)
            self._rows.update(zip(missing, found, strict=True))
        out = np.stack([self._rows[key] for key in keys])
        for key in keys if self.path is None else ():
            self._rows.move_to_end(key)
        while self.path is None and len(self._rows) > IN_MEMORY:
            self._rows.popitem(last=False)
        return out

    def _files(self) -> tuple[Path, Path]:
        assert self.path is not None
        return self.path.with_suffix(".rows"), self.path.with_suffix(".texts")

    def _read(self) -> None:
        """Take over what was written since, by whomever."""
        rows, records = self._files()
        if not records.exists() or not rows.exists():
            self._rows, self._read_to = OrderedDict(), 0
            return
        size = 4 * self.width
        count = min(records.stat().st_size // _RECORD.size, rows.stat().st_size // size)
        if count <= self._read_to:
            return
        with records.open("rb") as told, rows.open("rb") as numbers:
            told.seek(self._read_to * _RECORD.size)
            numbers.seek(self._read_to * size)
            for _ in range(count - self._read_to):
                key, checksum = _RECORD.unpack(told.read(_RECORD.size))
                raw = numbers.read(size)
                if zlib.crc32(raw) == checksum:
                    self._rows[key] = np.frombuffer(raw, dtype="<f4")
                else:
                    log.warning("%s: a row is damaged; it is computed anew", rows)
        self._read_to = count

    def _append(self, keys: Sequence[bytes], found: NDArray[np.float32]) -> None:
        rows, records = self._files()
        with locked(rows.with_suffix(".lock")), records.open("ab") as told, rows.open("ab") as numbers:
            count = min(told.tell() // _RECORD.size, numbers.tell() // (4 * self.width))
            told.truncate(count * _RECORD.size)  # what a killed process left half written
            numbers.truncate(count * 4 * self.width)
            for key, row in zip(keys, found, strict=True):
                raw = np.ascontiguousarray(row, dtype="<f4").tobytes()
                numbers.write(raw)
                told.write(_RECORD.pack(key, zlib.crc32(raw)))
