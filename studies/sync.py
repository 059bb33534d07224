"""Sending to MLflow what an earlier run could not."""

from __future__ import annotations

from pathlib import Path

from personalization.databases import shown
from personalization.errors import UnavailableError, UsageError
from studies.study import find_study, stored_spec
from tracking.spool import OFF, Sender, Spool, tracking_uri

WAIT_S = 600


def sync(study: str, home: Path, storage: str | None = None, tracking: str | None = None) -> str:
    """Send all of a study to its MLflow, or to another; where it is, as it may be printed.

    Earlier studies of this name that were deleted are sent, too. UnavailableError tells what is not in MLflow, and why.
    """
    records = sorted((home / "spool").glob(f"{study}-????????????.jsonl"))
    known = None if tracking and records else stored_spec(find_study(study, home, storage)).tracking
    place = tracking or known
    if place == OFF:
        raise UsageError(f"study {study} is not tracked: its spec says tracking: {OFF}; give --tracking URI")
    uri = tracking_uri(home, place)
    for path in records:
        spool = Spool(home, study, path.stem.rpartition("-")[2])
        sender = Sender(spool, uri)
        waiting = sender.finish(WAIT_S)
        if not sender.succeeded or waiting:
            log = home / "logs" / "tracking.log"
            reasons = [f"refused: {reason}" for reason in spool.refused()[:1]]
            if not spool.is_at(uri):
                waiting = len(spool.records())
                reasons.append(
                    f"they were sent to {spool.sent()['place']}: if a run of {study} goes on, sync when it has ended"
                )
            raise UnavailableError("; ".join([f"{waiting} records wait for {shown(uri)}", *reasons, f"see {log}"]))
    return shown(uri)
