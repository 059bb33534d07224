"""The local spool between a study and MLflow.

A study appends one JSON line for each thing worth tracking and goes on; a sender process replays the lines to MLflow
and notes how far it came. So tracking costs a trial one write, an outage of the server fails nothing, and what was not
sent waits for the next run or for `chamtune sync`. The lines repeat what the Optuna database holds.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from personalization.databases import sqlite_url

OFF = "none"
"""The tracking URI that switches tracking off."""


def tracking_uri(home: Path, uri: str | None) -> str:
    """The given MLflow URI, or that of the home folder's `mlflow.db`.

    MLflow makes the folder of a `sqlite:///` URI from its undecoded text, which would leave a folder `a%3Fb` beside a
    home `a?b`; it does not where the URI names its driver.
    """
    if uri is not None:
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
        """Add one record."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        line = (json.dumps(record, allow_nan=False) + "\n").encode()
        handle = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            size = os.fstat(handle).st_size
            torn = size > 0 and os.pread(handle, 1, size - 1) != b"\n"
            os.write(handle, b"\n" + line if torn else line)
        finally:
            os.close(handle)

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

    def sent(self) -> dict[str, Any]:
        """The sender's notes: URI, experiment and offset; empty where there are none, or none that can be read."""
        try:
            notes: dict[str, Any] = json.loads(self.sent_path.read_text())
        except (FileNotFoundError, json.JSONDecodeError):
            return {}
        return notes

    def note_sent(self, notes: Mapping[str, Any]) -> None:
        """Keep the sender's notes. They may be lost in a power cut: what is sent again is recognised by its key."""
        draft = self.sent_path.with_suffix(".new")
        draft.write_text(json.dumps(notes))
        os.replace(draft, self.sent_path)

    def waiting(self) -> int:
        """How many records have not been sent."""
        return len(self.records(self.sent().get("offset", 0)))

    def trials(self) -> set[int]:
        """Numbers of the trials that have a record."""
        return {record["number"] for record, _ in self.records() if record["kind"] == "trial"}


class Sender:
    """The process that replays a spool. It ends when the spool is sent and this process is done or dead."""

    def __init__(self, spool: Spool, uri: str) -> None:
        logs = spool.home / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        self._spool = spool
        with (logs / "tracking.log").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tracking.mlflow_tracker", str(spool.home), spool.study, spool.study_id, uri],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
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
        return self._spool.waiting()
