"""What a study found: the table at the end of a run, and the result folders of baseline and best."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from optuna.trial import FrozenTrial, TrialState

from personalization.data.known import newcomers
from search_spaces import ChainParams
from studies.constraints import feasible
from studies.study import OpenStudy, ended_trials, ranked
from studies.trial import MEASURED
from studies.verdict.prospects import prospect
from studies.verdict.references import PRIOR, references
from tracking import figures
from tracking.breakdown import Groups
from tracking.report import write_report
from tracking.spool import Spool

Files = dict[str, bytes | str]

TUNE_NOTE = "Measured on the tune users, on which the parameters were chosen: an optimistic figure, not evidence."


class StudyResult(NamedTuple):
    """The outcome of a run."""

    study: str
    trials: int
    complete: int
    failed: int
    pruned: int
    duplicates: int
    feasible: int
    baseline: dict[str, float]
    gold: dict[str, float]
    references: dict[str, float]
    detectable_difference: float | None
    label_mass: float | None
    truncated_prompts: int
    taste: dict[str, float]
    groups: dict[int, float]
    best: dict[str, Any] | None
    closest: dict[str, Any] | None
    lost: list[int]
    elapsed_s: float
    folder: Path
    waiting: int = 0
    stopped_by: int | None = None

    def as_json(self) -> dict[str, Any]:
        """The object that `--json` prints."""
        return {**self._asdict(), "folder": str(self.folder)}


def summarize(opened: OpenStudy, elapsed_s: float, lost: list[int]) -> StudyResult:
    """Count and rank the study's trials."""
    ended = ended_trials(opened.study)
    complete = [t for t in ended if t.state == TrialState.COMPLETE]
    best = next(ranked(ended, opened.spec.optimize), None)
    closest = min(complete, key=lambda t: sum(max(0.0, v) for v in t.constraints.values()), default=None)
    return StudyResult(
        study=opened.spec.name,
        trials=len(ended),
        complete=len(complete),
        failed=sum(t.state == TrialState.FAIL for t in ended),
        pruned=sum(t.state == TrialState.PRUNED for t in ended),
        duplicates=sum("duplicate_of" in t.user_attrs.get(MEASURED, {}) for t in ended),
        feasible=sum(map(feasible, ended)),
        baseline=opened.baseline.metrics,
        gold={"entropy": opened.baseline.gold_entropy(), "top1_share": opened.baseline.gold_top1_share()},
        references=references(opened, "tune"),
        detectable_difference=prospect(opened).detectable,
        label_mass=opened.objective.label_mass(),
        truncated_prompts=opened.scorer.truncated,
        taste={} if best is None else taste_profile(opened, opened.rooms.decode(best.params)),
        groups=by_groups(opened, complete),
        best=None if best is None else _described(opened, best),
        closest=None if best is not None or closest is None else _described(opened, closest),
        lost=lost,
        elapsed_s=round(elapsed_s, 3),
        folder=opened.home / "results" / opened.spec.name,
    )


def taste_profile(opened: OpenStudy, params: ChainParams) -> dict[str, float]:
    """Accuracy on tune with the taste of users added, left out and subtracted, all else equal; {} without it."""
    params = opened.objective.resolved(params)
    gamma = params.get_value("calibration.gamma")
    if not gamma or params["calibration"].prior_mode not in ("user", "similar"):
        return {}
    strength = abs(gamma)
    signs = {"added": strength, "left out": 0.0, "subtracted": -strength}
    return {
        name: opened.objective.evaluate(params.changed(gamma=signed)).metrics["accuracy"]
        for name, signed in signs.items()
    }


def by_groups(opened: OpenStudy, trials: list[FrozenTrial]) -> dict[int, float]:
    """The first metric of the best feasible trial with each number of groups, of adapters of groups."""
    metric, direction = next(iter(opened.spec.optimize.items()))
    better = max if direction == "maximize" else min
    found: dict[int, float] = {}
    for trial in filter(feasible, trials):
        params = opened.rooms.decode(trial.params)
        for own in (params[name] for name in ("adapter", "head") if name in params):
            if own.level == "cluster":
                value = trial.user_attrs[MEASURED]["metrics"][metric]
                found[own.groups] = better(value, found.get(own.groups, value))
    return dict(sorted(found.items()))


def taste_figure(opened: OpenStudy, params: ChainParams) -> bytes:
    """Accuracy on tune over gamma, all else equal."""
    params = opened.objective.resolved(params)
    chosen = params["calibration"].gamma
    reach = max(2.0, abs(chosen))
    gammas = np.linspace(-reach, reach, 41)
    evaluations = [opened.objective.evaluate(params.changed(gamma=float(gamma))) for gamma in gammas]
    accuracies = [evaluation.metrics["accuracy"] for evaluation in evaluations]
    return figures.taste(gammas, np.array(accuracies), chosen, references(opened, "tune")[PRIOR])


def changed(params: ChainParams, baseline: ChainParams) -> dict[str, Any]:
    """The parameters that are not the baseline's."""
    before = baseline.flat()
    return {name: value for name, value in params.flat().items() if value != before[name]}


def _described(opened: OpenStudy, trial: FrozenTrial) -> dict[str, Any]:
    params = opened.objective.resolved(opened.rooms.decode(trial.params))
    return {
        "trial": trial.number,
        "params": params.flat(),
        "changed": changed(params, opened.rooms.BASELINE),
        "metrics": trial.user_attrs[MEASURED]["metrics"],
        "remarks": list(opened.objective.facts(opened.rooms.decode(trial.params)).remarks),
        "constraints": dict(trial.constraints),
    }


def write_results(opened: OpenStudy, result: StudyResult, spool: Spool | None) -> None:
    """Write and spool the result folders of baseline and best."""
    figure: Files = {figure_name(opened): study_figure(opened)}
    wanted = [("baseline", "baseline", opened.rooms.BASELINE, figure)]
    if result.best is not None:
        number = result.best["trial"]
        params = opened.rooms.decode(opened.study.trials[number].params)
        wanted.append(("best", f"best-{number}", params, {**figure, **_files_of_best(opened, result, params)}))
    for name, key, params, extra in wanted:
        candidate = opened.objective.evaluate(params)
        folder = result.folder / name
        facts = opened.objective.facts(params)
        note = "\n\n".join([TUNE_NOTE, *(f"Note: {remark}." for remark in facts.remarks)])
        write_report(folder, opened.baseline, candidate, note, extra, groups_of(opened, params, "tune"))
        if spool is not None:
            spool.append_result(name, key, folder, params.flat(), candidate.metrics, {"measured_on": "tune"})
    if spool is not None:
        spool.append(_summary_record(result))


def groups_of(opened: OpenStudy, params: ChainParams, part: str) -> Groups:
    """The groups of a part's users, for a report: of stages that have some, and where some have no history, those."""
    questions = opened.splits.part(part)
    new = newcomers(questions)
    histories = {question.user_id: "none" if question.user_id in new else "some" for question in questions.questions}
    return {"groups": dict(opened.objective.groups(params, part)), "histories": histories if new else {}}


def _files_of_best(opened: OpenStudy, result: StudyResult, params: ChainParams) -> Files:
    """What stands beside the report of the best trial: name -> content."""
    found: Files = {"gamma.png": taste_figure(opened, params)} if result.taste else {}
    if len(result.groups) > 1:
        found["number_of_groups.png"] = figures.numbers("groups", result.groups, next(iter(opened.spec.optimize)))
    facts = opened.objective.facts(params)
    found |= {f"{name}.png": figures.PICTURES[name](**given()) for name, given in facts.pictures.items()}
    return found | {name: made() for name, made in facts.files.items()}


def _summary_record(result: StudyResult) -> dict[str, Any]:
    measured = {} if result.best is None else result.best["metrics"]
    return {
        "kind": "summary",
        "ended_ms": time.time_ns() // 1_000_000,
        "step": result.trials,
        "metrics": {
            "trials": result.trials,
            "feasible": result.feasible,
            **{f"baseline/{name}": value for name, value in result.baseline.items()},
            **{f"best/{name}": value for name, value in measured.items() if value is not None},
        },
        "tags": {"best_trial": "none" if result.best is None else result.best["trial"]},
    }


def figure_name(opened: OpenStudy) -> str:
    """The file of `study_figure`."""
    return "pareto.png" if len(opened.spec.optimize) > 1 else "history.png"


def study_figure(opened: OpenStudy) -> bytes:
    """The Pareto figure of a study with several metrics, else its history."""
    trials = [t for t in opened.study.get_trials(deepcopy=False) if t.state == TrialState.COMPLETE]
    ok = [feasible(t) for t in trials]
    names = list(opened.spec.optimize)
    if len(names) == 1:
        values = [t.value for t in trials if t.value is not None]
        maximize = opened.spec.optimize[names[0]] == "maximize"
        return figures.history(names[0], values, ok, _baseline_value(opened, names[0]), maximize)
    front = {t.number for t in opened.study.best_trials}
    points = np.array([t.values or [] for t in trials]).reshape(-1, len(names))
    return figures.pareto(names, points, ok, [t.number in front for t in trials])


def _baseline_value(opened: OpenStudy, metric: str) -> float:
    return opened.baseline.metrics.get(metric, 0.0)
