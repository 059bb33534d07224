"""The ledger of confirm questions: every look at some is recorded before it happens, and spends alpha.

The j-th use of a confirm set is tested at alpha_j = alpha * 6 / (pi^2 j^2). The alpha_j add up to alpha, so however
often a set is used, the chance of ever promoting something useless on it stays below alpha. A use that was opened and
never closed (the process died) counts, and is finished by asking again: the same candidate is tested, nothing else.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from personalization.errors import DataError
from personalization.files import locked


def spent_alpha(alpha: float, use: int) -> float:
    """The level at which the `use`-th look (from 1) is tested."""
    return alpha * 6 / (math.pi * use) ** 2


class Ledger:
    """An append-only file in the home folder."""

    def __init__(self, home: Path) -> None:
        self.path = home / "ledger.jsonl"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other promotions out: two looks at once would both count as the same one."""
        with locked(self.path.with_suffix(".lock")):
            yield

    def entries(self) -> list[dict[str, Any]]:
        """Every line, oldest first. A torn last line (power cut) is refused, not skipped."""
        if not self.path.exists():
            return []
        found = []
        for number, line in enumerate(self.path.read_text(encoding="utf-8").splitlines(), start=1):
            try:
                found.append(json.loads(line))
            except json.JSONDecodeError:
                raise DataError(
                    f"{self.path}: record {number}: not JSON; the ledger is damaged. Remove the torn line: "
                    "the use it recorded must then be counted by hand"
                ) from None
        return found

    def append(self, entry: dict[str, Any]) -> None:
        """Add a line and make sure that it is on disk."""
        handle = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(handle, (json.dumps(entry) + "\n").encode())
            os.fsync(handle)
        finally:
            os.close(handle)

    def closed(self, state: str) -> dict[str, Any] | None:
        """The recorded result of a study in this state, if there is one."""
        for entry in self.entries():
            if entry["event"] == "closed" and entry["state"] == state:
                result: dict[str, Any] = entry["result"]
                return result
        return None

    def open_use(self, questions: set[str], state: str, study: str) -> int:
        """Record a look at some confirm questions; which look it is.

        Every earlier look at any of the questions counts, whatever study, split or file it came from. Asking again for
        the same state is the same look. `questions`: a digest of each question.
        """
        opened = [e for e in self.entries() if e["event"] == "opened" and not questions.isdisjoint(e["questions"])]
        for entry in opened:
            if entry["state"] == state:
                return int(entry["use"])
        use = 1 + max((entry["use"] for entry in opened), default=0)
        self.append({"event": "opened", "state": state, "study": study, "use": use, "questions": sorted(questions)})
        return use

    def close_use(self, state: str, result: dict[str, Any]) -> None:
        """Record what came of a look."""
        self.append({"event": "closed", "state": state, "result": result})
