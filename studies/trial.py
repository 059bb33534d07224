"""One trial: ask, measure, tell. The one place that catches everything, and it records what it caught."""

from __future__ import annotations

import json
import math
import traceback
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from objectives import Objective
from personalization.errors import ChamtuneError
from personalization.evaluation import Evaluation, all_metrics
from search_spaces import Space
from studies.constraints import UNMEASURED, Constraint
from studies.pruning import watch
from studies.storage import STAMP

MEASURED = "measured"
"""Trial attribute: metrics, curves, remarks, sampler seed; of repeated parameters the trial whose result was reused, of
a pruned trial what was seen until then."""


@dataclass(frozen=True)
class Outcome:
    """What happened to a trial; what tracking and progress display need. `curves`: name -> a value for each step."""

    number: int
    state: str
    params: dict[str, Any]
    metrics: dict[str, float]
    violations: dict[str, float]
    started_ms: int
    ended_ms: int
    failure: str | None = None
    duplicate_of: int | None = None
    remarks: list[str] = field(default_factory=list)
    curves: dict[str, list[float]] = field(default_factory=dict)

    @property
    def feasible(self) -> bool:
        """Complete, and no constraint broken."""
        return self.state == "COMPLETE" and all(value <= 0 for value in self.violations.values())


def outcome_of(trial: FrozenTrial) -> Outcome:
    """The outcome of a finished trial, from what the storage holds."""
    measured = trial.user_attrs.get(MEASURED, {})
    return Outcome(
        number=trial.number,
        state=trial.state.name,
        params=dict(trial.params),
        metrics=measured.get("metrics", {}),
        violations=dict(trial.constraints),
        started_ms=int(trial.datetime_start.timestamp() * 1000) if trial.datetime_start else 0,
        ended_ms=int(trial.datetime_complete.timestamp() * 1000) if trial.datetime_complete else 0,
        failure=trial.user_attrs.get("failure"),
        duplicate_of=measured.get("duplicate_of"),
        remarks=measured.get("remarks", []),
        curves={**measured.get("curves", {}), **_reported(trial)},
    )


def _reported(trial: FrozenTrial) -> dict[str, list[float]]:
    """What a trial told its pruner, in order."""
    told = [value for _, value in sorted(trial.intermediate_values.items()) if math.isfinite(value)]
    return {"reported": told} if told else {}


@dataclass
class TrialRunner:
    """Runs the trials of one study in one process.

    `measured` maps canonical params to (trial number, metrics); `stamp` marks the trials of this home.
    """

    study: optuna.Study
    space: Mapping[str, optuna.distributions.BaseDistribution]
    rooms: Space
    objective: Objective
    baseline: Evaluation
    optimize: list[str]
    constraints: list[Constraint]
    seed: int
    pruner: str = "none"
    stamp: str | None = None
    measured: dict[str, tuple[int, dict[str, float]]] = field(default_factory=dict)

    def remember(self, trials: list[FrozenTrial]) -> None:
        """Take over what earlier runs measured."""
        for trial in trials:
            if trial.state == TrialState.COMPLETE:
                params = self.rooms.decode(trial.params)
                self.measured.setdefault(_canonical(params), (trial.number, trial.user_attrs[MEASURED]["metrics"]))

    def run_one(self) -> Outcome:
        """Ask for one trial, measure it, tell the result."""
        trial = self.study.ask(dict(self.space))
        if self.stamp is not None:
            trial.set_user_attr(STAMP, self.stamp)
        duplicate: int | None = None
        remarks: list[str] = []
        curves: dict[str, list[float]] = {}
        try:
            params = self.rooms.decode(trial.params)
            key = _canonical(params)
            if key in self.measured:
                duplicate, metrics = self.measured[key]
            else:
                report = watch(self.pruner, trial, self.optimize, self.baseline)
                try:
                    evaluation = self.objective.evaluate(params, report=report)
                except optuna.TrialPruned:
                    return self._pruned(trial, params)
                metrics = {**all_metrics(evaluation, self.baseline), **self.objective.observed(params)}
                remarks, curves = self.objective.remarks(params), self._curves(params)
                self.measured[key] = (trial.number, metrics)
            values = [_finite(name, metrics[name]) for name in self.optimize]
            violations = {c.metric: c.violation(_finite(c.metric, metrics[c.metric])) for c in self.constraints}
        except KeyboardInterrupt:
            self._end(trial, TrialState.FAIL, failure="interrupted")
            raise
        except Exception:
            return self._end(trial, TrialState.FAIL, failure=traceback.format_exc())
        for name, violation in violations.items():
            trial.set_constraint(name, violation)
        measured: dict[str, Any] = {"metrics": metrics, "seed": self.seed, "remarks": remarks, "curves": curves}
        if duplicate is not None:
            measured["duplicate_of"] = duplicate
        trial.set_user_attr(MEASURED, measured)
        return outcome_of(self.study.tell(trial, values))

    def _pruned(self, trial: optuna.Trial, params: Any) -> Outcome:
        """Tell a trial that was ended early, with what was seen until then."""
        seen = {"seed": self.seed, "remarks": self.objective.alarms(params), "curves": self._curves(params)}
        trial.set_user_attr(MEASURED, seen)
        return self._end(trial, TrialState.PRUNED)

    def _curves(self, params: Any) -> dict[str, list[float]]:
        return {name: list(values) for name, values in self.objective.curves(params).items()}

    def _end(self, trial: optuna.Trial, state: TrialState, failure: str | None = None) -> Outcome:
        """Tell a trial that has no value. It is infeasible, so that nothing takes it for a good one."""
        violations = {c.metric: UNMEASURED for c in self.constraints}
        for name, violation in violations.items():
            trial.set_constraint(name, violation)
        if failure is not None:
            trial.set_user_attr("failure", failure)
        return outcome_of(self.study.tell(trial, state=state))


def _canonical(params: Any) -> str:
    return json.dumps(asdict(params), sort_keys=True)


def _finite(name: str, value: float) -> float:
    number = float(value)
    if not math.isfinite(number):
        raise ChamtuneError(f"non_finite_objective: {name} is {number}")
    return number
