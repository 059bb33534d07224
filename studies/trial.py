"""One trial under `study.optimize`: measured, or ended with the reason. The one place that catches everything.

What it caught is recorded with the trial. Failures in a row that are alike are an outage: they say nothing about
parameters, and a study that went on would burn its budget on them.
"""

from __future__ import annotations

import json
import math
import re
import traceback
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState

from personalization.errors import ChamtuneError, UnavailableError, first_line
from personalization.evaluation import Evaluation, all_metrics
from personalization.stages.facts import Facts
from search_spaces import ChainParams
from studies.constraints import UNMEASURED, feasible
from studies.pruning import outrun, together, watch
from studies.recovery import FAILURE, INTERRUPTED, OUTAGE, uncounted
from studies.samplers import suggested
from studies.storage import STORAGE_ERRORS
from studies.study import OpenStudy

IN_A_ROW = 5
"""Failures of a kind that are an outage."""
IO_ERROR, INTERNAL = 74, 70
"""What a run exits with after an outage of the disk, or of anything that is not ours (sysexits).

The exit code of an outage of the storage is that of `UnavailableError`.
"""
MEASURED = "measured"
"""Trial attribute: metrics, fields, curves, remarks, sampler seed; of repeated parameters the trial whose result was
reused, of a pruned trial what was seen until then. What is not finite is null."""


class GivenBack(Exception):
    """Raised in a trial that shall not be measured here; says why."""


class NotFinite(ChamtuneError):
    """What a study judges by has no finite value at these parameters."""


class Outage(ChamtuneError):
    """Failures in a row that are alike."""

    def __init__(self, cause: Exception) -> None:
        super().__init__(
            f"{IN_A_ROW} trials in a row failed with {type(cause).__name__}: {first_line(cause)}. They cost no budget "
            "and are queued again; mend the cause, and the same command goes on (--debug shows the traceback)"
        )
        self.__cause__ = cause
        if isinstance(cause, OSError):
            self.exit_code = IO_ERROR
        elif isinstance(cause, STORAGE_ERRORS):
            self.exit_code = UnavailableError.exit_code
        else:
            self.exit_code = cause.exit_code if isinstance(cause, ChamtuneError) else INTERNAL


@dataclass(frozen=True)
class Outcome:
    """What happened to a trial; what tracking and progress display need.

    `metrics` are the finite ones. `curves`: name -> a value for each step, NaN where it is not finite.
    """

    number: int
    state: str
    params: dict[str, Any]
    metrics: dict[str, float]
    violations: dict[str, float]
    started_ms: int
    ended_ms: int
    feasible: bool
    failure: str | None = None
    duplicate_of: int | None = None
    remarks: list[str] = field(default_factory=list)
    curves: dict[str, list[float]] = field(default_factory=dict)


def outcome_of(trial: FrozenTrial) -> Outcome:
    """The outcome of a finished trial, from what the storage holds."""
    measured = trial.user_attrs.get(MEASURED, {})
    curves = {
        name: [math.nan if value is None else value for value in told]
        for name, told in measured.get("curves", {}).items()
    }
    reported = [value for _, value in sorted(trial.intermediate_values.items()) if math.isfinite(value)]
    return Outcome(
        number=trial.number,
        state=trial.state.name,
        params=dict(trial.params),
        metrics={name: value for name, value in measured.get("metrics", {}).items() if value is not None},
        violations=dict(trial.constraints),
        started_ms=int(trial.datetime_start.timestamp() * 1000) if trial.datetime_start else 0,
        ended_ms=int(trial.datetime_complete.timestamp() * 1000) if trial.datetime_complete else 0,
        feasible=feasible(trial),
        failure=trial.user_attrs.get(FAILURE),
        duplicate_of=measured.get("duplicate_of"),
        remarks=measured.get("remarks", []),
        curves={**curves, **({"reported": reported} if reported else {})},
    )


@dataclass
class TrialRunner:
    """Runs the trials of one study in one process.

    `begin`: the first act of a trial; it may raise GivenBack. `rival`: answers that a trial is ended for not being able
    to beat, once one of the study was measured to its end. `measured` maps canonical params to (trial number, metrics).
    """

    opened: OpenStudy
    seed: int
    begin: Callable[[optuna.Trial], None] = lambda _: None
    rival: Evaluation | None = None
    measured: dict[str, tuple[int, dict[str, float]]] = field(default_factory=dict)
    _known: set[int] = field(default_factory=set)
    _number: int | None = None
    _alike: tuple[object, list[int]] = (None, [])
    _outage: Outage | None = None

    def remember(self, trials: Iterable[FrozenTrial]) -> None:
        """Take over what earlier runs and other workers measured."""
        for trial in trials:
            if trial.state == TrialState.COMPLETE and trial.number not in self._known:
                self._known.add(trial.number)
                params = self.opened.rooms.decode(trial.params)
                self.measured.setdefault(_canonical(params), (trial.number, trial.user_attrs[MEASURED]["metrics"]))

    def run_one(self) -> Outcome | None:
        """Run one trial. None where it does not count: given back, or taken over by workers who thought this one dead.

        Outage after so many failures of a kind in a row.
        """
        self._number, ended = None, list[FrozenTrial]()
        try:
            self.opened.study.optimize(
                self._measure, n_trials=1, catch=(Exception,), callbacks=[lambda _, trial: ended.append(trial)]
            )
        except (ValueError, UpdateFinishedTrialError):
            if not self._taken_over():
                raise
            return None
        except UnboundLocalError as error:
            found = _beneath(error)
            raise found from found.__cause__
        if self._outage is not None:
            raise self._outage
        return None if uncounted(ended) else outcome_of(ended[0])

    def _taken_over(self) -> bool:
        trials = self.opened.study.get_trials(deepcopy=False)
        mine = None if self._number is None else trials[self._number]
        return mine is not None and mine.state == TrialState.FAIL and FAILURE not in mine.user_attrs

    def _measure(self, trial: optuna.Trial) -> list[float]:
        """The objective: values of what the study optimises. Whatever is raised is recorded with the trial first."""
        self._number = trial.number
        try:
            self.begin(trial)
            params = self.opened.rooms.decode(suggested(trial, self.opened.space))
            metrics, notes = self._evaluated(trial, params)
            values = [_finite(name, metrics[name]) for name in self.opened.spec.optimize]
            violations = {c.metric: c.violation(_finite(c.metric, metrics[c.metric])) for c in self.opened.constraints}
        except optuna.TrialPruned:
            self._alike = (None, [])
            self._constrain(trial, self._unmeasured())
            raise
        except (KeyboardInterrupt, GivenBack) as end:
            self._fail(trial, str(end) if isinstance(end, GivenBack) else INTERRUPTED)
            raise
        except Exception as error:
            self._fail(trial, traceback.format_exc())
            self._count_alike(trial, error)
            raise
        self._constrain(trial, violations)
        stored = {name: _storable(value) for name, value in metrics.items()}
        trial.set_user_attr(MEASURED, {"metrics": stored, "seed": self.seed, **notes})
        if "duplicate_of" not in notes:
            self._alike = (None, [])
        return values

    def _evaluated(self, trial: optuna.Trial, params: Any) -> tuple[dict[str, float], dict[str, Any]]:
        """Metrics of these parameters, and what else is kept of them."""
        key = _canonical(params)
        if key in self.measured:
            original, metrics = self.measured[key]
            return metrics, {"remarks": [], "curves": {}, "duplicate_of": original}
        spec, baseline = self.opened.spec, self.opened.baseline
        goals = list(spec.optimize)
        report = together(
            watch(spec.pruner, trial, goals, baseline), outrun(self.rival if self.measured else None, goals[0])
        )
        try:
            evaluation = self.opened.objective.evaluate(params, report=report)
        except optuna.TrialPruned:
            course = self.opened.objective.course(params)
            seen = {"seed": self.seed, "remarks": list(course.alarms), "curves": _curves(course)}
            trial.set_user_attr(MEASURED, seen)
            raise
        facts = self.opened.objective.facts(params)
        metrics = {**all_metrics(evaluation, baseline), **facts.metrics}
        notes = {"remarks": list(facts.remarks), "curves": _curves(facts), "fields": storable_fields(facts)}
        self.measured[key] = (trial.number, metrics)
        return metrics, notes

    def _fail(self, trial: optuna.Trial, reason: str) -> None:
        trial.set_user_attr(FAILURE, reason)
        self._constrain(trial, self._unmeasured())

    def _unmeasured(self) -> dict[str, float]:
        """A trial without a value is infeasible, so that nothing takes it for a good one."""
        return {c.metric: UNMEASURED for c in self.opened.constraints}

    def _constrain(self, trial: optuna.Trial, violations: Mapping[str, float]) -> None:
        for name, violation in violations.items():
            trial.set_constraint(name, violation)

    def _count_alike(self, trial: optuna.Trial, error: Exception) -> None:
        """A metric that is not finite is its parameters' own; of all else, failures in a row make an outage."""
        if isinstance(error, NotFinite):
            return
        kind, numbers = (type(error), re.sub(r"\d+", "", first_line(error))), self._alike[1]
        self._alike = (kind, [*numbers, trial.number] if kind == self._alike[0] else [trial.number])
        if len(self._alike[1]) >= IN_A_ROW:
            trial.set_user_attr(OUTAGE, self._alike[1])
            self._outage = Outage(error)


def _beneath(error: BaseException) -> BaseException:
    """What a storage raised, or a Ctrl-C, where `Study.optimize` fell over it while it told a result; else the error
    itself."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, (*STORAGE_ERRORS, KeyboardInterrupt)):
        cause = cause.__context__
    return cause or error


def _canonical(params: ChainParams) -> str:
    return json.dumps(params.flat(), sort_keys=True)


def _curves(facts: Facts) -> dict[str, list[float | None]]:
    return {name: [_storable(v) for v in values] for name, values in facts.curves.items()}


def storable_fields(facts: Facts) -> dict[str, Any]:
    """The fields of a trial, as every storage and page can read them."""
    return {name: _storable(told) if isinstance(told, float) else told for name, told in facts.fields.items()}


def _storable(value: float | None) -> float | None:
    """A number that every storage and page can read."""
    return value if value is not None and math.isfinite(value) else None


def _finite(name: str, value: float) -> float:
    number = float(value)
    if not math.isfinite(number):
        raise NotFinite(f"non_finite_objective: {name} is {number}")
    return number
