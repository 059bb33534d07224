"""The path from the baseline to a setting: what each parameter adds, measured and not modelled.

An ablation (Fawcett & Hoos 2016; HyperSHAP asks the same of a model of the objective): from the baseline on, at each
step the parameter whose change gains most on the tune users takes its final value. A calibration costs nothing to
measure, and what other stages run is stored, so no surrogate stands in. Steps add up to the whole gain. Parameters that
do nothing alone (the strength of a taste without a taste) are changed two at once.

The steps are measured on the confirm users where a promotion has looked at them already, with the order chosen on tune:
no step is chosen by whom it is measured on. Else they are measured on tune and are optimistic. Intervals are BCa over
users. `alone` is a parameter's gain over the baseline by itself (what HyperSHAP calls ablation from the baseline),
`without` what the setting loses where that parameter alone goes back. A step whose interval holds 0 could be dropped,
as far as these users tell.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np

from personalization.errors import UsageError
from personalization.evaluation import MEANS, Evaluation
from search_spaces import ChainParams, short_names
from studies.study import OpenStudy, best_feasible
from studies.verdict.evidence import Evidence
from tracking.significance import difference, gain, gain_interval, gains_by_user, user_totals

MOVED = 8
"""Users that are named for a step."""
Full = dict[str, Any]


class Target(NamedTuple):
    """The setting that a path leads to, its trial, the part that steps are measured on, and whether what answers it is
    fitted on select users, too."""

    params: ChainParams
    trial: int
    part: str
    refit: bool = False


def target_of(opened: OpenStudy, metric: str) -> Target:
    """What was last looked at on the confirm users, measured there; else the best feasible trial by a goal, on tune."""
    looks = [look for look in Evidence(opened.storage).looks() if look.study_id == opened.record["id"] and look.found]
    if looks and (found := looks[-1].found) is not None:
        return Target(opened.rooms.of_flat(found["params"]), int(found["trial"]), "confirm", found.get("refit", False))
    best = best_feasible(opened, metric)
    return Target(opened.rooms.decode(best.params), best.number, "tune")


def path_of(opened: OpenStudy, metric: str | None = None, target: Target | None = None) -> dict[str, Any]:
    """The path by a metric, by default the study's first goal; JSON-able: study, trial, part, metric, before, after,
    gain, interval, steps; `error`: the standard error by user of the setting's value on tune, where trials are
    measured."""
    goals = opened.spec.optimize
    metric = metric or next(iter(goals))
    if metric not in goals:
        raise UsageError(f"study {opened.spec.name} has no goal {metric!r}; there are: {', '.join(goals)}")
    target = target or target_of(opened, metric)
    start, end = (params.full() for params in (opened.rooms.BASELINE, target.params))
    order = ordered(opened, start, end, metric)
    names, objective = short_names(opened.rooms.chain), opened.objective.refitting(target.refit)

    def measured(values: Full, part: str = target.part) -> Evaluation:
        return objective.evaluate(opened.rooms.of_full(values), part)

    steps, values = list[dict[str, Any]](), dict(start)
    first, last = measured(start), measured(end)
    before = first
    for changed in order:
        values = {**values, **{name: end[name] for name in changed}}
        after = measured(values)
        alone = {**start, **{name: end[name] for name in changed}}
        without = {**end, **{name: start[name] for name in changed}}
        steps.append(
            {
                "step": " + ".join(names[name] for name in changed),
                "values": {names[name]: end[name] for name in changed},
                **_between(before, after, metric),
                "alone": gain(first, measured(alone), metric),
                "without": gain(measured(without), last, metric),
            }
        )
        before = after
    return {
        "study": opened.spec.name,
        "trial": target.trial,
        "measured_on": target.part,
        "metric": metric,
        "before": first.metrics.get(metric),
        "after": last.metrics.get(metric),
        **{key: value for key, value in _between(first, last, metric).items() if key in ("gain", "low", "high")},
        "error": _error(opened.objective.evaluate(target.params), metric),
        "steps": steps,
    }


def _error(found: Evaluation, metric: str) -> float | None:
    """Standard error by user of a metric that is a mean over questions: that of a ratio, users being drawn."""
    if metric not in MEANS:
        return None
    sums, sizes = user_totals(found, found.question_scores(metric))
    error = difference(sums, np.zeros(len(sums)), sizes)[1]
    return error if np.isfinite(error) else None


def ordered(opened: OpenStudy, start: Full, end: Full, metric: str) -> list[tuple[str, ...]]:
    """The parameters that differ, in the order of a greedy path on tune; two at once where none does anything alone."""
    left = [name for name in end if end[name] != start[name]]
    values, order = dict(start), list[tuple[str, ...]]()
    while left:
        now = opened.rooms.of_full(values)
        before = opened.objective.evaluate(now)
        moves = _effective(opened, values, end, [(name,) for name in left], now)
        silent = [name for name in left if (name,) not in moves]
        moves |= _effective(opened, values, end, combinations(silent, 2), now)
        if not moves:
            moves = {tuple(left): opened.rooms.of_full({**values, **{name: end[name] for name in left}})}
        gains = {move: gain(before, opened.objective.evaluate(params), metric) for move, params in moves.items()}
        best = max(moves, key=lambda move: gains[move])
        order.append(best)
        values |= {name: end[name] for name in best}
        left = [name for name in left if name not in best]
    return order


def _effective(
    opened: OpenStudy, values: Full, end: Full, moves: Iterable[tuple[str, ...]], now: ChainParams
) -> dict[tuple[str, ...], ChainParams]:
    """The moves that change what is done."""
    found = {}
    for move in moves:
        params = opened.rooms.of_full({**values, **{name: end[name] for name in move}})
        if params != now:
            found[move] = params
    return found


def _between(before: Evaluation, after: Evaluation, metric: str) -> dict[str, Any]:
    """Gain with its interval, and which users it moves."""
    low, high = gain_interval(before, after, metric)
    row: dict[str, Any] = {"gain": gain(before, after, metric), "low": low, "high": high}
    if metric not in MEANS:
        return {**row, "droppable": low <= 0 <= high, "users": None, "moved": []}
    sums, sizes = gains_by_user(before, after, metric)
    own, names = sums / sizes, after.users[0]
    far = np.argsort(-np.abs(own), kind="stable")[:MOVED]
    users = {"better": int((own > 0).sum()), "worse": int((own < 0).sum()), "same": int((own == 0).sum())}
    moved = [{"user": names[i], "gain": float(own[i])} for i in far if own[i] != 0]
    return {**row, "droppable": low <= 0 <= high, "users": users, "moved": moved}
