"""Replays a spool to MLflow: `python -P -m tracking.mlflow_tracker HOME STUDY STUDY_ID`, URI in MLFLOW_TRACKING_URI.

While MLflow is out of reach the sender tries again, with growing pauses, until its parent has ended and a grace period
is over. A record that MLflow refuses for what it says, or whose files cannot be read, is noted with the reason, counts
as not sent, and is tried again by the next sender.
"""

from __future__ import annotations

import fcntl
import logging
import os
import select
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from tenacity import RetryCallState, Retrying, retry_if_exception_type, wait_exponential

from personalization.databases import without_secrets
from personalization.errors import first_line
from tracking.projection import Projection
from tracking.spool import PRIVATE, Spool

log = logging.getLogger("tracking")

GRACE_S = 15.0
"""How long to go on trying once the parent has ended."""


class Patience:
    """Whether to go on: always while the parent lives, then for the grace period."""

    def __init__(self) -> None:
        self._ended_at: float | None = None

    def parent_ended(self) -> bool:
        """Whether the parent has closed our standard input, be it by dying."""
        if self._ended_at is None and select.select([sys.stdin], [], [], 0)[0] and not os.read(0, 4096):
            self._ended_at = time.monotonic()
        return self._ended_at is not None

    def is_over(self, _: RetryCallState | None = None) -> bool:
        """Whether the grace period has passed, too."""
        return self.parent_ended() and time.monotonic() - (self._ended_at or 0.0) > GRACE_S


@contextmanager
def _turn(spool: Spool, patience: Patience) -> Iterator[bool]:
    """Whether this sender may send. Another one of the study sends first, and often has nothing left for this one."""
    spool.path.parent.mkdir(parents=True, exist_ok=True)
    with os.fdopen(os.open(spool.path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT, PRIVATE), "ab") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if patience.is_over() or (patience.parent_ended() and not spool.waiting()):
                    yield False
                    return
                time.sleep(0.2)
            else:
                yield True
                return


def send(spool: Spool, uri: str, patience: Patience) -> bool:
    """Replay until the spool is empty and the parent has ended; whether everything was taken."""
    retrying = Retrying(
        wait=wait_exponential(0.5, max=10),
        stop=patience.is_over,
        retry=retry_if_exception_type((MlflowException, OSError)),
        before_sleep=lambda state: log.warning("MLflow does not take records now: %s", _reason(state, uri)),
        retry_error_callback=lambda _: None,
    )
    with _turn(spool, patience) as ours:
        if not ours:
            return spool.waiting() == 0 and spool.is_at(uri)
        client = MlflowClient(tracking_uri=uri, registry_uri=uri)
        projection: Projection | None = retrying(lambda: Projection(client, spool, uri))
        while projection is not None:
            records = projection.pending()
            for record, end in records:
                delivered = retrying(lambda record=record, end=end: projection.deliver(record, end))
                if delivered is None:
                    return False
                if not delivered:
                    break
            if not records:
                if patience.parent_ended() and not spool.records(projection.notes["offset"]):
                    return not projection.notes["refused"]
                time.sleep(0.2)
        return False


def _reason(state: RetryCallState, uri: str) -> str:
    error = state.outcome.exception() if state.outcome is not None else None
    assert error is not None
    said = without_secrets(first_line(error), uri)
    if isinstance(error, MlflowException) and error.get_http_status_code() in (401, 403):
        return f"{said}; set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
    return said


def main() -> None:
    os.nice(19)
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s")
    home, study, study_id = sys.argv[1:]
    sys.exit(0 if send(Spool(Path(home), study, study_id), os.environ["MLFLOW_TRACKING_URI"], Patience()) else 75)


if __name__ == "__main__":
    main()
