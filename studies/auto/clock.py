"""A number of minutes: what is left of them, over any number of runs. Only time in which something runs counts.

The journal is one JSON file, replaced as a whole: what was spent, what each arm had and gave. A kill costs at most what
was spent since the last note of it, and while a race runs what is spent is noted by itself.
"""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from types import FrameType
from typing import Any

from personalization.errors import DataError
from personalization.files import write_atomic

NOTED_S = 2.0
"""Seconds between two notes of what was spent, whatever runs."""
SOON_S = 0.01
"""What is due already rings after so long."""


class TimeUp(KeyboardInterrupt):
    """The running trial has to end now. It is measured later, if there is a later."""


class Journal:
    """What a race keeps between runs: `spent_s`, and a mapping for each arm."""

    def __init__(self, path: Path, now: Any = time.monotonic) -> None:
        self.path, self._now = path, now
        self.content: dict[str, Any] = {"spent_s": 0.0, "arms": {}}
        if path.exists():
            try:
                self.content = json.loads(path.read_text(encoding="utf-8"))
            except json.JSONDecodeError as error:
                raise DataError(f"{path}: not JSON ({error}); take it away to race anew") from None
        self._before, self._started = float(self.content["spent_s"]), now()
        self._kept, self._writing = deepcopy(self.content), threading.Lock()

    @property
    def spent_s(self) -> float:
        """Seconds in which this race ran, in all its runs."""
        return float(self._before + self._now() - self._started)

    def arm(self, name: str) -> dict[str, Any]:
        """What is kept of an arm, to be changed and noted."""
        found: dict[str, Any] = self.content["arms"].setdefault(name, {"slices": [], "fate": None})
        return found

    def note(self) -> None:
        """Write down everything."""
        self._kept = deepcopy(self.content)
        self._write()

    def _write(self) -> None:
        with self._writing:
            told = {**self._kept, "spent_s": round(self.spent_s, 3)}
            write_atomic(self.path, json.dumps(told, indent=1))

    @contextmanager
    def ticking(self) -> Iterator[None]:
        """While the block runs, note what was spent every `NOTED_S`; the rest stays as it was noted last."""
        over = threading.Event()

        def tick() -> None:
            while not over.wait(NOTED_S):
                self._write()

        thread = threading.Thread(target=tick, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()


@contextmanager
def ended_after(seconds: float) -> Iterator[None]:
    """Raise TimeUp in the block when this many seconds are over. Only the main thread can be interrupted so. A block
    in a block rings first, and hands the rest of the outer one's time back."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def ring(_number: int, _frame: FrameType | None) -> None:
        raise TimeUp

    before, started = signal.signal(signal.SIGALRM, ring), time.monotonic()
    outer, _ = signal.setitimer(signal.ITIMER_REAL, max(SOON_S, seconds))
    try:
        yield
    finally:
        left = max(SOON_S, outer - (time.monotonic() - started)) if outer else 0.0
        signal.setitimer(signal.ITIMER_REAL, left)
        signal.signal(signal.SIGALRM, before)


def spoken_time(seconds: float) -> str:
    """A duration to be read."""
    if seconds < 1:
        return "no time" if seconds < 0.05 else f"{seconds:.1f} s"
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.1f} min"
