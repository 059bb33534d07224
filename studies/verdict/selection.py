"""Choosing one trial: a shortlist by tune, then the largest gain over the baseline.

The shortlist is judged on the tune and select users together: a set that is too small to have seen a gain must not veto
it. Where answers on tune users come from what has learned their labels, the select users judge alone, and the baseline
stays only where they show that it is better. Of equal gains the simpler trial wins. `benchmarks/power.py` measures what
this rule deploys beside others.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from optuna.trial import FrozenTrial

from personalization.errors import UsageError
from personalization.evaluation import MEANS, Evaluation, all_metrics, joined
from personalization.metrics import METRICS, ORDERED
from search_spaces import ChainParams
from studies.constraints import Constraint
from studies.study import OpenStudy, ended_trials, ranked
from studies.verdict.references import SEES_PROBABILITIES
from tracking.significance import gain, gain_interval, paired_test

SHORTLIST = 5


@dataclass(frozen=True)
class Candidate:
    """A shortlisted trial. `seen`: its answers on the questions that the shortlist is judged on."""

    trial: int
    params: ChainParams
    complexity: float
    tune_value: float
    seen: Evaluation


@dataclass(frozen=True)
class Shortlist:
    """Candidates and the baseline on the questions of the same parts."""

    candidates: list[Candidate]
    baseline: Evaluation
    parts: tuple[str, ...]


def goals(opened: OpenStudy) -> list[str]:
    """The metrics that the study optimises; the first one decides. UsageError where one cannot be tested."""
    refuse_untestable(f"study {opened.spec.name}", opened.spec.optimize)
    return list(opened.spec.optimize)


def refuse_untestable(who: str, metrics: Iterable[str]) -> None:
    """UsageError for a goal that no promotion can test."""
    for name in metrics:
        if name not in (*MEANS, *METRICS, *ORDERED):
            raise UsageError(
                f"{who} optimises {name}, which says nothing about right answers and cannot be tested; make it a "
                "constraint, and optimise a metric that can"
            )


def shortlist(opened: OpenStudy) -> Shortlist:
    """At most five feasible trials that differ; of several goals, spread over the Pareto front.

    Where the study judged labels only, trials with the same labels are one, and tau, which moves no label, is settled
    by NLL on tune first, unless the spec fixes it.
    """
    chosen: dict[bytes, tuple[FrozenTrial, ChainParams]] = {}
    labels_only = judges_labels_only(opened)
    for trial in spread(opened):
        if len(chosen) == SHORTLIST:
            break
        params = settled(opened, opened.rooms.decode(trial.params))
        measured = opened.objective.evaluate(params)
        chosen.setdefault((measured.predicted if labels_only else measured.log_probs).tobytes(), (trial, params))
    parts = _judging_parts(opened, [params for _, params in chosen.values()])

    def seen(params: ChainParams) -> Evaluation:
        return joined([opened.objective.evaluate(params, part) for part in parts])

    candidates = [
        Candidate(trial.number, params, opened.rooms.complexity(params), (trial.values or [np.nan])[0], seen(params))
        for trial, params in chosen.values()
    ]
    return Shortlist(candidates, seen(opened.rooms.BASELINE), parts)


def _judging_parts(opened: OpenStudy, chosen: Sequence[ChainParams]) -> tuple[str, ...]:
    """The parts whose users judge a shortlist. UsageError where there are none."""
    some_select = bool(opened.splits.select.questions)
    if not any(opened.objective.learned_labels(params) for params in chosen):
        return ("tune", "select") if some_select else ("tune",)
    if some_select:
        return ("select",)
    raise UsageError(
        f"study {opened.spec.name}: LoRA and prefixes have learned from the tune users and are chosen on select users, "
        "and there are none; give data.shares.select more"
    )


def spread(opened: OpenStudy) -> list[FrozenTrial]:
    """The feasible trials in the order in which they are shortlisted.

    One goal: best first. Several: members of the Pareto front at even distances along it, then the others.
    """
    trials = list(ranked(ended_trials(opened.study), opened.spec.optimize))
    if len(opened.spec.optimize) == 1 or not trials:
        return trials
    on_front = {trial.number for trial in opened.study.best_trials}
    front = [trial for trial in trials if trial.number in on_front]
    places = np.unique(np.linspace(0, len(front) - 1, SHORTLIST).round().astype(int))
    first = [front[place] for place in places]
    taken = {trial.number for trial in first}
    return [*first, *(trial for trial in trials if trial.number not in taken)]


def judges_labels_only(opened: OpenStudy) -> bool:
    """Whether no metric of the study sees probabilities. Such a study leaves the temperature to chance."""
    return not {*opened.spec.optimize, *opened.spec.constraints} & SEES_PROBABILITIES


def settled(opened: OpenStudy, params: ChainParams) -> ChainParams:
    """The parameters with tau settled by NLL on tune, where the study judged labels only and left tau open."""
    if judges_labels_only(opened) and not {"tau", "calibration.tau"} & set(opened.spec.space):
        return opened.objective.settled(params)
    return params


def feasible(found: Shortlist, constraints: Sequence[Constraint]) -> list[Candidate]:
    """The candidates that keep every constraint on the questions that they are judged on, too."""

    def keeps(candidate: Candidate) -> bool:
        metrics = all_metrics(candidate.seen, found.baseline)
        return all(constraint.violation(metrics[constraint.metric]) <= 0 for constraint in constraints)

    return [candidate for candidate in found.candidates if keeps(candidate)]


def worse_than(test: Mapping[str, Any], margin: float | None, level: float) -> bool:
    """Whether a further goal is worse by more than its margin: the interval of its gain reaches beyond it.

    Without a margin: whether the loss is significant.
    """
    if margin is None:
        return bool(test["delta"] < 0 and test["p_value"] < level)
    return bool(test["interval"][0] < -margin)


def choose(
    found: Shortlist,
    candidates: Sequence[Candidate],
    metrics: Sequence[str],
    margins: Mapping[str, float],
    level: float,
) -> Candidate | None:
    """The candidate with the largest gain in the first metric, of those that no further one speaks against.

    None where that is the baseline. `margins`: further metric -> how much worse it may be.
    """
    first, *further = metrics

    def spoken_against(candidate: Candidate) -> bool:
        tests = (paired_test(found.baseline, candidate.seen, metric) for metric in further)
        return any(worse_than(test, margins.get(test["metric"]), level) for test in tests)

    gains = {c.trial: gain(found.baseline, c.seen, first) for c in candidates if not spoken_against(c)}
    left = [candidate for candidate in candidates if candidate.trial in gains]
    if not left:
        return None
    best = max(left, key=lambda c: (gains[c.trial], -c.complexity, -c.trial))
    most = gains[best.trial] if "tune" in found.parts else gain_interval(found.baseline, best.seen, first)[1]
    return best if most > 0 else None
