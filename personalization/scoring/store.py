"""Score tables on disk, addressed by everything they depend on.

A table is a safetensors file named by the SHA-256 of its key, with the SHA-256 of its values in the header. A damaged
file is named in a warning and computed anew; it is never used.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from personalization.files import write_atomic

Table = NDArray[np.float32]


def key_of(parts: Mapping[str, Any]) -> str:
    """Hex SHA-256 of a JSON-able key."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def stored_table(folder: Path, key: str, compute: Callable[[], tuple[Table, int]]) -> tuple[Table, int]:
    """(table, number of truncated prompts) under `key`, computed and stored on first use."""
    path = folder / f"{key}.safetensors"
    if path.exists():
        found = _read(path)
        if found is not None:
            return found
        warnings.warn(f"{path} is damaged; the scores are computed anew", stacklevel=2)
    table, truncated = compute()
    header = {"sha256": _digest(table), "truncated": str(truncated)}
    write_atomic(path, save({"scores": table}, metadata=header))
    return table, truncated


def _digest(table: Table) -> str:
    return hashlib.sha256(np.ascontiguousarray(table).tobytes()).hexdigest()


def _read(path: Path) -> tuple[Table, int] | None:
    try:
        with safe_open(path, framework="numpy") as file:
            table: Table = file.get_tensor("scores")
            header = file.metadata()
            intact = header["sha256"] == _digest(table)
            truncated = int(header["truncated"])
    except (SafetensorError, OSError, KeyError, TypeError, ValueError):
        return None
    return (table, truncated) if intact else None
