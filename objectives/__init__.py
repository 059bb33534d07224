"""What a trial measures: params -> Evaluation. No Optuna type, no MLflow. A kind of task is a file here."""

from __future__ import annotations

from typing import Protocol

from personalization.evaluation import Evaluation


class Report(Protocol):
    """Called with what the first users, or the first steps of a training, gave; may raise to end the trial."""

    def __call__(self, first: Evaluation, step: int | None = None) -> None:
        """`step`: how many there are with this one; as many as there were calls where none is given."""
