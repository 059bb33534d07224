"""What a trial measures: params -> Evaluation. No Optuna type, no MLflow.

An objective is built from splits and a scorer, and offers `evaluate(params, part, report)` and `deployment(params)`.
To add one: a file here, a file of the same name in `search_spaces/`, a line in each table, and a method in
`personalization.deployment.METHODS` that serves it. The contract tests run over the table.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from personalization.data.splits import Splits
from personalization.evaluation import Evaluation

OBJECTIVES = {
    "calibration": "objectives.calibration:Calibration",
    "report_calibration": "objectives.calibration:ReportCalibration",
    "steering": "objectives.steering:Steering",
    "retrieval": "objectives.retrieval:Retrieval",
    "adapter": "objectives.adapter:Adapter",
}
"""name -> "module:class"."""

KINDS: dict[str, tuple[str, ...]] = {"steering": ("causal",)}
"""name -> the kinds of backbone that it takes, where it does not take all."""


class Report(Protocol):
    """Called with what the first users, or the first steps of a training, gave; may raise to end the trial."""

    def __call__(self, first: Evaluation, step: int | None = None) -> None:
        """`step`: how many there are with this one; as many as there were calls where none is given."""


class Scorer(Protocol):
    """Whatever gives float32 [n, K] log-probabilities of labels. `kind`: how it is asked, one of `WORDINGS`."""

    @property
    def kind(self) -> str: ...

    def label_logprobs(
        self,
        prompts: Sequence[str],
        continuations: Sequence[str],
        progress: Callable[[int, int], None] | None = None,
    ) -> NDArray[np.float32]: ...

    def embeddings(
        self, texts: Sequence[str], progress: Callable[[int, int], None] | None = None
    ) -> NDArray[np.float32]: ...


class Objective(Protocol):
    """What the study loop needs."""

    def evaluate(self, params: Any, part: str = "tune", report: Report | None = None) -> Evaluation:
        """Measure these parameters on one part of the data."""

    def observed(self, params: Any) -> dict[str, float]:
        """What the method did on the tune users, beyond its predictions; stored with the trial's metrics."""

    def groups(self, params: Any, part: str) -> dict[str, int]:
        """The group of each user of a part, for a method that has groups."""

    def curves(self, params: Any) -> Mapping[str, Sequence[float]]:
        """What changed while these parameters were measured, or until the trial was ended: name -> a value a step."""

    def alarms(self, params: Any) -> list[str]:
        """What looked wrong meanwhile; a sentence each."""

    def pictures(self, params: Any) -> Mapping[str, Mapping[str, Any]]:
        """What is worth drawing of these parameters: name of a figure -> what that figure takes."""

    def files(self, params: Any) -> Mapping[str, bytes]:
        """What is worth keeping of these parameters beside their figures: file name -> content."""

    def remarks(self, params: Any) -> list[str]:
        """Why these parameters did on the tune users what their figures show; a sentence each."""

    def deployment(self, params: Any) -> dict[str, Any]:
        """JSON-able: all that serving these parameters needs besides the model."""

    def resolved(self, params: Any) -> Any:
        """The parameters, with those filled in that a solver finds."""

    def settle(self, params: Any) -> Any:
        """The same decisions with better probabilities: what labels do not depend on, fitted by NLL on tune."""

    def learned_from_tune(self, params: Any) -> bool:
        """Whether answers on tune users come from what has learned these users' own labels."""

    def warm_start(self) -> list[dict[str, Any]]:
        """Raw parameter values worth trying first, from exact solvers."""


def load_objective(
    name: str, splits: Splits, scorer: Scorer, progress: Callable[[int, int], None] | None = None
) -> Objective:
    """Build an objective by name."""
    module, _, attribute = OBJECTIVES[name].partition(":")
    built: Objective = getattr(import_module(module), attribute)(splits, scorer, progress)
    return built
