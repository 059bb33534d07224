"""What the pages know of servers: the logs of a home, and the report of each, made again as the log grows.

A report reads the whole log. It is made when somebody looks and the log has grown, and not again before `REST` times
the seconds that it took have passed; until then the last one is shown.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from personalization.deployment import CONFIG, read_config
from personalization.errors import DataError, UsageError
from serving.log import segments
from serving.monitor import Watched, faults, report, watched
from serving.retune import AGAIN
from serving.timeline import course
from serving.traffic import about
from studies.shown.pages.house import House
from studies.verdict.deployments import generations

KINDS = ("questions", "feedback", "shadow")
REST = 10.0
"""Times its own seconds that a report stands at least."""


class _Made(NamedTuple):
    state: str
    at: float
    seconds: float
    found: dict[str, Any]


@dataclass
class Logs:
    """The logs of a house's home, and further folders of logs."""

    house: House
    further: Sequence[Path] = ()
    _made: dict[str, _Made] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def home(self) -> Path:
        """The home folder."""
        return self.house.home

    def folders(self) -> dict[str, Path]:
        """Name -> folder of each log that a server began and that can be read; of equal names with the parent's."""
        found: dict[str, Path] = {}
        folders = [*sorted((self.home / "serving").glob("*")), *self.further]
        for path in {path.resolve(): path for path in folders}.values():
            if segments(path, "questions") and _told(path):
                found[f"{path.parent.name}-{path.name}" if path.name in found else path.name] = path
        return found

    def overview(self) -> list[dict[str, Any]]:
        """A row a log, the newest first: name, deployment, generation, time of the last answer, state."""
        rows = [self._row(name, folder) for name, folder in self.folders().items()]
        return sorted(rows, key=lambda row: str(row["last"]), reverse=True)

    def _row(self, name: str, folder: Path) -> dict[str, Any]:
        told, newest = about(folder), segments(folder, "questions")[-1][1].stat()
        place = Path(told["deploy"])
        return {
            "log": name,
            "deploy": told["deploy"],
            "other": told["other"],
            "split": told["split"],
            "generation": _generation(place),
            "last": datetime.fromtimestamp(newest.st_mtime, UTC).isoformat(timespec="seconds")
            if newest.st_size
            else None,
            "state": self.state(name),
        }

    def _folder(self, name: str) -> Path:
        known = self.folders()
        if name not in known:
            raise UsageError(f"no log {name!r}; there are: {', '.join(known) or 'none'}")
        return known[name]

    def state(self, name: str) -> str:
        """Changes with what is logged and with the deployed config; UsageError where there is no such log."""
        folder = self._folder(name)
        files = [path for kind in KINDS for _, path in segments(folder, kind)]
        config = Path(about(folder)["deploy"]) / CONFIG
        return f"{sum(path.stat().st_size for path in files)}-{config.stat().st_mtime_ns if config.exists() else 0}"

    def report(self, name: str) -> dict[str, Any]:
        """What the log says, how it went, and the generations; DataError where nothing was asked yet."""
        with self._lock:
            state, made = self.state(name), self._made.get(name)
            if made is None or (made.state != state and time.monotonic() > made.at + REST * made.seconds):
                began = time.monotonic()
                found = {**self._read(name), "state": state}
                seconds = time.monotonic() - began
                found["seconds"] = round(seconds, 2)
                made = self._made[name] = _Made(state, began + seconds, seconds, found)
        return made.found

    def _read(self, name: str) -> dict[str, Any]:
        folder = self._folder(name)
        told = about(folder)
        place = Path(told["deploy"])
        if not (place / CONFIG).exists():
            raise DataError(f"{place}: the deployment that {name} is of is not there any more")
        log = watched(folder, place)
        found = report(log)
        provenance = log.config["provenance"]
        return {
            "log": name,
            "folder": str(folder),
            "made_at": datetime.now(UTC).isoformat(timespec="seconds"),
            **{key: told[key] for key in ("deploy", "other", "split")},
            "study": provenance.get("study"),
            "first": log.traffic.times[0],
            "last": log.traffic.times[-1],
            **found,
            "faults": faults(found),
            **course(log),
            "generations": [self._stood(row, log) for row in generations(self.home, place)],
        }

    def _stood(self, generation: Mapping[str, Any], log: Watched) -> dict[str, Any]:
        """A generation with what it answered, and what the study that made it was begun for."""
        rows = np.flatnonzero(log.traffic.generations == generation["generation"])
        labelled = rows[log.traffic.gold[rows] >= 0]
        study, why = generation["study"], []
        if study in self.house.names() and generation["restored_from"] is None:
            why = self.house.study(study).user_attrs.get(AGAIN, {}).get("why", [])
        return {
            **generation,
            "first": log.traffic.times[rows[0]] if len(rows) else None,
            "answers": len(rows),
            "accuracy": log.traffic.evaluation(labelled).metrics["accuracy"] if len(labelled) else None,
            "why": why,
        }


def _told(folder: Path) -> dict[str, Any]:
    """How a log's server was started; empty where that is not noted, or cannot be read."""
    with suppress(DataError):
        return about(folder)
    return {}


def _generation(place: Path) -> int | None:
    """Which generation stands at a place; None where none can be read."""
    with suppress(DataError):
        return int(read_config(place, to_answer=False)["generation"]) if (place / CONFIG).exists() else None
    return None
