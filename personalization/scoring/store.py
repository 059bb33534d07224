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


def stored_table(folder: Path, key: str, compute: Callable[[], Table]) -> Table:
    """The table under `key`, computed and stored on first use."""
    path = folder / f"{key}.safetensors"
    if path.exists():
        table = _read(path)
        if table is not None:
            return table
        warnings.warn(f"{path} is damaged; the scores are computed anew", stacklevel=2)
    table = compute()
    write_atomic(path, save({"scores": table}, metadata={"sha256": _digest(table)}))
    return table


def _digest(table: Table) -> str:
    return hashlib.sha256(np.ascontiguousarray(table).tobytes()).hexdigest()


def _read(path: Path) -> Table | None:
    try:
        with safe_open(path, framework="numpy") as file:
            table: Table = file.get_tensor("scores")
            intact = (file.metadata() or {}).get("sha256") == _digest(table)
    except (SafetensorError, OSError, KeyError):
        return None
    return table if intact else None
