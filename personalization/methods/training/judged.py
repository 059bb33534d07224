"""What held-out items gave after each evaluation of a training: told to a pruner, and kept to be told again.

A pruner compares trials on the items that are judged at every level; where there are none, on all held-out ones. Their
scores lie beside the adapters, so a trial with adapters that were trained before is judged like the one that trained.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save

from personalization.data.records import Dataset
from personalization.files import write_atomic
from personalization.methods.history.labelled import judged_at_every_level

Report = Callable[[Dataset, NDArray[np.float32], Sequence[dict[str, float]]], None]
"""Called after each evaluation with the held-out items, their scores [m, K] and all records; may raise to end it."""


class Judged:
    """The comparable ones of held-out `judged` among `items`; `path`: where scores lie; `report` is told."""

    def __init__(self, items: Dataset, judged: Dataset, path: Path, report: Report | None) -> None:
        shared = judged_at_every_level(items)
        self.rows = [row for row, q in enumerate(judged.questions) if q.id in shared] or list(range(len(judged)))
        self.items = Dataset(judged.task, judged.labels, tuple(judged.questions[row] for row in self.rows))
        self.path, self.report = path, report
        self.tables: dict[str, NDArray[np.float32]] = load_file(path) if path.exists() else {}

    def __call__(self, scores: NDArray[np.float32], records: Sequence[dict[str, float]]) -> None:
        """Keep the scores [m, K] of an evaluation, and tell of them."""
        self.tables[str(len(records))] = scores[self.rows]
        write_atomic(self.path, save(self.tables))
        if self.report is not None:
            self.report(self.items, scores[self.rows], records)

    def again(self, records: Sequence[dict[str, float]]) -> None:
        """Tell of all evaluations of a training that is over."""
        if self.report is not None:
            for step in sorted(map(int, self.tables)):
                self.report(self.items, self.tables[str(step)], records[:step])
