"""The local spool between a study and MLflow.

A study appends one JSON line for each thing worth tracking and goes on; a sender process replays the lines to MLflow
and notes how far it came. So tracking costs a trial one write, an outage of the server fails nothing, and what was not
sent waits for the next run or for `chamtune sync`. The lines repeat what the Optuna database holds.

Files are readable by their owner only, and hold no password.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from personalization.databases import kept, split, sqlite_url
from personalization.files import writing_home
from tracking.urls import tracking_environment

log = logging.getLogger(__name__)

OFF = "none"
"""The tracking URI that switches tracking off."""

PRIVATE = 0o600
FLUSH_S = 60
"""How long the end of a command waits for MLflow; what is left is sent by the next run or `chamtune sync`."""

VIEW_NAME = "chamtune"
"""Name of the view of a study's runs that is stored in MLflow."""


def tracking_uri(home: Path, uri: str | None) -> str:
    """The given MLflow URI, or that of the home folder's `mlflow.db`; UsageError where what is given is none.

    MLflow makes the folder of a `sqlite:///` URI from its undecoded text, which would leave a folder `a%3Fb` beside a
    home `a?b`; it does not where the URI names its driver.
    """
    if uri is not None:
        split(uri)
        return uri
    path = home.resolve() / "mlflow.db"
    plain = sqlite_url(path)
    return plain if plain.endswith(str(path)) else sqlite_url(path, "pysqlite")


class Spool:
    """The lines of one study. `study_id` tells it from an earlier study of the same name that was deleted."""

    def __init__(self, home: Path, study: str, study_id: str) -> None:
        self.home = home
        self.study = study
        self.study_id = study_id
        self.path = home / "spool" / f"{study}-{study_id}.jsonl"
        self.sent_path = self.path.with_suffix(".sent.json")

    def append(self, record: Mapping[str, Any]) -> None:
        """Add one record. JSON knows no infinity and no NaN: they become text, which `float` reads."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        line = (json.dumps(_finite(record), allow_nan=False) + "\n").encode()
        handle = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, PRIVATE)
        try:
            size = os.fstat(handle).st_size
            torn = size > 0 and os.pread(handle, 1, size - 1) != b"\n"
            left = memoryview(b"\n" + line if torn else line)
            while left:
                left = left[os.write(handle, left) :]
        finally:
            os.close(handle)

    def append_result(
        self,
        name: str,
        key: str,
        folder: Path,
        params: Mapping[str, Any],
        metrics: Mapping[str, float],
        tags: Mapping[str, str],
    ) -> None:
        """Add a result folder; `key` tells its run from others of the study."""
        now = time.time_ns() // 1_000_000
        told = {"name": name, "key": key, "folder": str(folder.resolve()), "params": params, "metrics": metrics}
        self.append({"kind": "result", **told, "tags": tags, "started_ms": now, "ended_ms": now})

    def records(self, offset: int = 0) -> list[tuple[dict[str, Any], int]]:
        """Whole records from a byte offset on, each with the offset behind it.

        A last line without an end is left for later; a torn one (disk full, power cut) is passed over: what it held
        is in the Optuna database and is added again on resume.
        """
        if not self.path.exists():
            return []
        with self.path.open("rb") as file:
            file.seek(offset)
            found = []
            for line in file:
                if not line.endswith(b"\n"):
                    break
                offset += len(line)
                try:
                    found.append((json.loads(line), offset))
                except json.JSONDecodeError:
                    continue
        return found

    def head(self) -> str:
        """A digest of the first line, which tells a spool that was written anew from the one that was sent."""
        if not self.path.exists():
            return ""
        with self.path.open("rb") as file:
            return hashlib.sha256(file.readline()).hexdigest()[:16]

    def sent(self) -> dict[str, Any]:
        """The sender's notes; empty where there are none, none that can be read, or those of another file.

        `place` and `experiment` say where the records went, `mark` is the experiment's own random id, `offset` is how
        far the sender came, `refused` maps the offsets behind records that were not taken to the reasons.
        """
        try:
            notes = json.loads(self.sent_path.read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return {}
        if not isinstance(notes, dict):
            return {}
        size = self.path.stat().st_size if self.path.exists() else 0
        return notes if notes.get("head") == self.head() and notes.get("offset", 0) <= size else {}

    def note_sent(self, notes: Mapping[str, Any]) -> None:
        """Keep the sender's notes. They may be lost in a power cut: what is sent again is recognised by its key."""
        draft = self.sent_path.with_suffix(".new")
        draft.unlink(missing_ok=True)
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT, PRIVATE), "w") as file:
            file.write(json.dumps(notes))
        os.replace(draft, self.sent_path)

    def is_at(self, uri: str) -> bool:
        """Whether what was sent is in this MLflow, and not in another."""
        return bool(self.sent().get("place", kept(uri)) == kept(uri))

    def refused(self) -> list[str]:
        """Why records were not taken, one reason for each."""
        return list(self.sent().get("refused", {}).values())

    def waiting(self) -> int:
        """How many records are not in MLflow: those that no sender came to, and those that were not taken."""
        return len(self.records(self.sent().get("offset", 0))) + len(self.refused())

    def trials(self) -> set[int]:
        """Numbers of the trials that have a record."""
        return {record["number"] for record, _ in self.records() if record["kind"] == "trial"}

    def knows_study(self) -> bool:
        """Whether the study itself has a record."""
        return any(record["kind"] == "study" for record, _ in self.records())


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


class Sender:
    """The process that replays a spool. It ends when the spool is sent and this process is done or dead."""

    def __init__(self, spool: Spool, uri: str) -> None:
        logs = spool.home / "logs"
        self._spool = spool
        with writing_home():
            logs.mkdir(parents=True, exist_ok=True)
            handle = os.open(logs / "tracking.log", os.O_WRONLY | os.O_APPEND | os.O_CREAT, PRIVATE)
        with os.fdopen(handle, "ab") as output:
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-P", "-m", "tracking.mlflow_tracker"),
                    *(str(spool.home.resolve()), spool.study, spool.study_id),
                ],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                env=os.environ | tracking_environment(uri),
                start_new_session=True,
            )

    def finish(self, timeout_s: float, progress: Callable[[int], None] | None = None) -> int:
        """Let the sender drain the spool; the number of records still waiting when it ended or the time was up."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        end = time.monotonic() + timeout_s
        while self._process.poll() is None and time.monotonic() < end:
            if progress is not None:
                progress(self._spool.waiting())
            time.sleep(0.1)
        reasons = self._spool.refused()
        if reasons:
            log.warning("MLflow did not take %d records of %s: %s", len(reasons), self._spool.study, reasons[0])
        return self._spool.waiting()

    @property
    def succeeded(self) -> bool:
        """Whether the sender has ended and found everything in MLflow."""
        return self._process.poll() == 0
