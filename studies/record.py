"""The frozen record of a study: spec, fingerprints and versions, stored with it and compared on every resume.

Data and model are compared by their fingerprints. Their places are noted beside, absolute and as the spec spelt them,
so that a study is found again from another folder, and may move.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from copy import deepcopy
from importlib.metadata import version
from typing import Any

from personalization.backbones.location import is_path
from personalization.errors import DataError, UsageError
from studies.data import WORLDS

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
    compared = ("spec", "order", "data", "model", "retriever", "started")
    found = differences({k: stored.get(k) for k in compared}, {k: current.get(k) for k in compared})
    if found:
        before = _places(stored)
        for key, place in _places(current).items():
            if stored[key.partition(".")[0]] != current[key.partition(".")[0]] and place != before.get(key):
                found.append(f"{key}: {_first(before.get(key, '(absent)'))} -> {_first(place)}")
        raise UsageError(
            f"study {study_name!r} was made with something else: {'; '.join(found)}. "
            "Undo the change, or give the study a new name with --name"
        )


def places_of(spec: Mapping[str, Any]) -> dict[str, str | list[str]]:
    """Where a spec's data and model lie: key -> a name, or the absolute path and the spec's own spelling of it."""
    found: dict[str, str | list[str]] = {}
    for key, value in (
        ("data.path", spec["data"].get("path")),
        ("data.table", spec["data"].get("table")),
        ("model.path", spec["model"]["path"]),
        ("model.retriever", spec["model"].get("retriever")),
    ):
        if value is not None:
            found[key] = value if _is_name(key, value) else _spellings(value)
    for part, value in (spec["data"].get("files") or {}).items():
        found[f"data.files.{part}"] = _spellings(value)
    return found


def _is_name(key: str, value: str) -> bool:
    """Whether it is a name that comes with the package, or the hub's."""
    if key == "data.path":
        return value in WORLDS
    if key == "data.table":
        return not os.path.exists(value)
    return not is_path(value)


def _first(place: str | list[str]) -> str:
    return place if isinstance(place, str) else place[0]


def _spellings(path: str) -> list[str]:
    return list(dict.fromkeys((os.path.abspath(path), path)))


def kept_places(stored: Mapping[str, Any], current: Mapping[str, Any]) -> dict[str, str | list[str]]:
    """The current places; one that was noted before keeps the spelling that its spec had then."""
    before = _places(stored)
    return {
        key: before[key] if key in before and _first(before[key]) == _first(place) else place
        for key, place in _places(current).items()
    }


def spec_of(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record's spec and terms as a raw spec, with data and model where they are, else where they were."""
    raw: dict[str, Any] = deepcopy({**record["spec"], **record["terms"]})
    for key, place in _places(record).items():
        *parents, last = key.split(".")
        section = raw
        for parent in parents:
            section = section.setdefault(parent, {})
        section[last] = place if isinstance(place, str) else next(filter(os.path.exists, place), place[0])
    return raw


def refuse_missing(study_name: str, record: Mapping[str, Any]) -> None:
    """DataError where the data or the model of a study are at none of their places."""
    for key, place in _places(record).items():
        if not isinstance(place, str) and not any(map(os.path.exists, place)):
            raise DataError(
                f"study {study_name!r}: {key} is at none of {', '.join(place)} (from {os.getcwd()}); where it has "
                "moved, `chamtune run SPEC` with the new path in the spec notes it"
            )


def _places(record: Mapping[str, Any]) -> dict[str, str | list[str]]:
    """The places of a record; older ones have them in their spec."""
    noted: dict[str, str | list[str]] | None = record.get("places")
    return places_of(record["spec"]) if noted is None else noted


def held_versions(stored: Mapping[str, Any], trials: int, now: Mapping[str, str]) -> list[dict[str, Any]]:
    """Under which versions a study's trials ran, oldest first, each with the trial from which it held."""
    first = {"from_trial": 0, "versions": stored["versions"]}
    held = [entry for entry in (first, *stored.get("later_versions", ())) if entry["from_trial"] < trials]
    if not held or held[-1]["versions"] != now:
        held.append({"from_trial": trials, "versions": dict(now)})
    return held
