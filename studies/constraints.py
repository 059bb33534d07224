"""Constraints on metrics, as in `entropy: ">= 0.6"`."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from optuna.trial import FrozenTrial, TrialState

_FORM = re.compile(r"\s*(>=|<=)\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*")

UNMEASURED = 1.0e9
"""Violation recorded for a trial that ended before it was measured: never feasible, and finite in every storage."""


@dataclass(frozen=True, slots=True)
class Constraint:
    """A bound on one metric. `sign` is 1 for an upper bound and -1 for a lower one."""

    metric: str
    sign: int
    bound: float

    def violation(self, value: float) -> float:
        """Positive where the bound is broken; in units of the bound, so that several constraints compare."""
        scale = abs(self.bound) or 1.0
        return self.sign * (value - self.bound) / scale


def parse_constraint(metric: str, text: str) -> Constraint:
    """Read ">= 0.6" or "<= 0.55"; ValueError for anything else."""
    match = _FORM.fullmatch(text)
    if match is None or not math.isfinite(float(match[2])):
        raise ValueError(f'{text!r} is no bound; write for example ">= 0.6" or "<= 0.55"')
    return Constraint(metric, 1 if match[1] == "<=" else -1, float(match[2]))


def feasible(trial: FrozenTrial) -> bool:
    """Complete, and no constraint broken."""
    return trial.state == TrialState.COMPLETE and all(value <= 0 for value in trial.constraints.values())
