"""What a trial measures: params -> Evaluation. No Optuna type, no MLflow. A kind of task is a file here."""

from __future__ import annotations

from typing import Protocol

from personalization.evaluation import Evaluation


class Report(Protocol):
    """Called with intermediate results: on the first users, or after the first steps of a training. May raise to end
    the trial."""

    def __call__(self, first: Evaluation, step: int | None = None) -> None:
        """`step`: the number of this result, from 1; None: the number of calls so far."""
