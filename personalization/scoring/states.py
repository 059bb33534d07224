"""Hidden states of many batches in one file.

The file holds the batches' states one after another, in the model's own dtype, as raw bytes. Beside it stands a JSON
file with the SHA-256 of the bytes, written when all batches are there: without it, or where it does not agree, the
states are computed anew. The folder keeps to the same size limit as the one of the score tables.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import weakref
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from personalization.files import atomic_file, sha256_of, write_atomic
from personalization.scoring.store import evict, size_limit

log = logging.getLogger(__name__)


def fits(path: Path, shapes: Sequence[tuple[int, int]], width: int, dtype: torch.dtype) -> bool:
    """Whether such states may be stored: they are there, or take neither more than the limit nor half the free disk."""
    if path.exists():
        return True
    size = sum(b * t for b, t in shapes) * width * dtype.itemsize
    path.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(path.parent).free
    if size <= min(size_limit(), free // 2):
        return True
    log.info(
        "%.1f GB of hidden states are not stored (%.1f GB are free); they are computed each time",
        size / 1e9,
        free / 1e9,
    )
    return False


class StoredStates:
    """States [B, T, d] of a list of batches, `shapes` giving B and T of each.

    `fill` yields the states of every batch in order; it is called where the file is not there or is damaged.
    """

    def __init__(
        self,
        path: Path,
        shapes: Sequence[tuple[int, int]],
        width: int,
        dtype: torch.dtype,
        fill: Callable[[], Iterable[Tensor]],
    ) -> None:
        self.path, self.shapes, self.width, self.dtype = path, shapes, width, dtype
        sizes = [b * t * width * dtype.itemsize for b, t in shapes]
        self._starts = [0, *np.cumsum(sizes).tolist()]
        if not self._intact():
            self._write(fill())
        os.utime(path)
        self._file = os.open(path, os.O_RDONLY)  # a mapped file would count as memory that the process holds
        weakref.finalize(self, os.close, self._file)

    def __getitem__(self, batch: int) -> Tensor:
        """The states of one batch [B, T, d], on the CPU; OSError where the file ends before."""
        start, end = self._starts[batch : batch + 2]
        states = torch.empty(*self.shapes[batch], self.width, dtype=self.dtype)
        room, read = states.view(torch.uint8).numpy().data.cast("B") if end > start else memoryview(b""), 0
        while read < end - start:
            got = os.preadv(self._file, [room[read:]], start + read)
            if not got:
                raise OSError(f"{self.path} ends after {start + read} bytes of {self._starts[-1]}")
            read += got
        return states

    def _intact(self) -> bool:
        seal = self.path.with_suffix(".json")
        if not self.path.exists() or not seal.exists() or self.path.stat().st_size != self._starts[-1]:
            return False
        try:
            intact = bool(json.loads(seal.read_text())["sha256"] == sha256_of(self.path))
        except (ValueError, KeyError, TypeError):
            intact = False
        if not intact:
            log.warning("%s is damaged; the hidden states are computed anew", self.path)
        return intact

    def _write(self, batches: Iterable[Tensor]) -> None:
        log.info("storing %.1f MB of hidden states in %s", self._starts[-1] / 1e6, self.path)
        with atomic_file(self.path) as file:
            for states in batches:
                file.write(states.contiguous().cpu().view(torch.uint8).numpy().tobytes())
        write_atomic(self.path.with_suffix(".json"), json.dumps({"sha256": sha256_of(self.path)}))
        evict(self.path.parent, size_limit(), self.path)
