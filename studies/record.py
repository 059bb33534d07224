"""The frozen record of a study: spec, fingerprints and versions, stored with it and compared on every resume."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from personalization.errors import UsageError

LIBRARIES = ("chamtune", "optuna", "torch", "transformers", "numpy", "scipy")


def versions() -> dict[str, str]:
    """Versions of what a result depends on."""
    return {"python": platform.python_version()} | {name: version(name) for name in LIBRARIES}


def differences(old: Any, new: Any, path: str = "") -> list[str]:
    """Where two JSON-able values differ, as "path: old -> new"."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        keys = [*old, *(key for key in new if key not in old)]
        absent = "(absent)"
        return [
            line
            for key in keys
            for line in differences(old.get(key, absent), new.get(key, absent), f"{path}.{key}" if path else str(key))
        ]
    return [] if old == new else [f"{path}: {_short(old)} -> {_short(new)}"]


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:16]}..."


def refuse_changes(study_name: str, stored: Mapping[str, Any], current: Mapping[str, Any]) -> None:
    """UsageError when a resumed study would mix two specs, data sets or models. Versions are recorded, not compared."""
    compared = ("spec", "order", "data", "model")
    found = differences({k: stored[k] for k in compared}, {k: current[k] for k in compared})
    if found:
        raise UsageError(
            f"study {study_name!r} was made with something else: {'; '.join(found)}. "
            "Undo the change, or give the study a new name with --name"
        )
