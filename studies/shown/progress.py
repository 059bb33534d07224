"""What a person sees while a command works, on standard error: bars on a terminal, lines elsewhere."""

from __future__ import annotations

import time
from typing import Self

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from studies.footprint import Footprint
from studies.footprint import said as held_said
from studies.runner import Watcher
from studies.shown.consoles import notes
from studies.spec import StudySpec
from studies.trial import Outcome
from studies.verdict.prospects import Prospect, said

LINE_S = 30.0
"""Seconds between two lines of progress where there is no terminal."""


class ScoringDisplay(Watcher):
    """A bar for each pass on a terminal, lines elsewhere."""

    def __init__(self) -> None:
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=16),
            MofNCompleteColumn(),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.fields[note]}"),
            console=notes,
        )
        self._tasks: dict[str, TaskID] = {}
        self._said: dict[str, tuple[int, float]] = {}

    def __enter__(self) -> Self:
        if notes.is_terminal and not notes.quiet:
            self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.progress.live.is_started:  # stopping prints an empty line where there is no terminal
            self.progress.stop()

    def advance(self, name: str, done: int, total: int, note: str = "") -> None:
        """Move the bar of this name."""
        if not notes.is_terminal:
            self._line(name, done, total, note)
            return
        if name not in self._tasks:
            self._tasks[name] = self.progress.add_task(name, total=total, note="")
        self.progress.update(self._tasks[name], completed=done, total=total, note=note)

    def _line(self, name: str, done: int, total: int, note: str) -> None:
        """A line at the start, at the end, and at most every `LINE_S` between them."""
        now = time.monotonic()
        told, at = self._said.get(name, (-1, float("-inf")))
        if done > told and (done >= total or now - at >= LINE_S):
            self._said[name] = done, now
            notes.print(f"{name} {done}/{total}{f', {note}' if note else ''}")

    def scoring(self, done: int, total: int) -> None:
        """Prompts scored so far."""
        self.advance("scoring prompts", done, total)


class RunDisplay(ScoringDisplay):
    """The progress of a study: trials, best feasible value, feasible share, time left."""

    def __init__(self, spec: StudySpec) -> None:
        super().__init__()
        self._metric, self._direction = next(iter(spec.optimize.items()))
        self._best: float | None = None
        self._seen = self._feasible = self._most = 0

    def opened(self, found: Prospect, held: Footprint) -> None:
        """What the confirm users can show, and what the study will hold."""
        for line in (*said(found), *held_said(held)):
            notes.print(line)

    def trial(self, outcome: Outcome, done: int, total: int) -> None:
        """A trial has ended."""
        self._seen += 1
        if outcome.feasible:
            self._feasible += 1
            value = outcome.metrics[self._metric]
            better = max if self._direction == "maximize" else min
            self._best = value if self._best is None else better(self._best, value)
        best = "none yet" if self._best is None else f"{self._best:.4f}"
        note = f"best {best}, feasible {self._feasible / self._seen:.0%}"
        self.advance("trials", done, total, note)

    def waiting(self, reason: str) -> None:
        """This worker waits for another."""
        notes.print(reason)

    def sending(self, waiting: int) -> None:
        """Records not yet in MLflow."""
        self._most = max(self._most, waiting)
        if self._most:
            self.advance("sending to MLflow", self._most - waiting, self._most)
