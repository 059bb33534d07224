"""What stands at the head of a study's page: its best value, why trials failed, and the trials that lead."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from studies.insights.reading import FOREIGN, goals_of
from studies.insights.report import plain
from studies.results import changed
from studies.shown.show import reason_of
from studies.study import RECORD, finished, ranked, stored_rooms, stored_spec
from studies.trial import MEASURED


def best_of(study: optuna.Study, trials: Sequence[FrozenTrial]) -> dict[str, Any]:
    """Metric, direction, method, whose answers the values are of (`users`, where known), and the best feasible value of
    the first goal."""
    goals = goals_of(study)
    ours = RECORD in study.user_attrs
    method = "imported" if FOREIGN in study.user_attrs else stored_spec(study).method if ours else "Optuna"
    metric = next(iter(goals))
    best = next(ranked(finished(trials), goals), None)
    return {
        "metric": metric,
        "direction": goals[metric],
        "method": method,
        "users": "tune users" if ours else None,
        "best": None if best is None else best.values[0],
        "best_trial": None if best is None else best.number,
    }


def failures_of(trials: Sequence[FrozenTrial]) -> list[dict[str, Any]]:
    """A row a reason: the last line of it, the numbers of the trials, and whether they count; the frequent first."""
    counted = {trial.number for trial in finished(trials)}
    found: dict[tuple[str, bool], list[int]] = {}
    for trial in trials:
        if trial.state == TrialState.FAIL:
            found.setdefault((reason_of(trial), trial.number in counted), []).append(trial.number)
    rows = [{"reason": why, "counted": counts, "trials": numbers} for (why, counts), numbers in found.items()]
    return sorted(rows, key=lambda row: -len(row["trials"]))


def winners_of(
    study: optuna.Study, trials: Sequence[FrozenTrial], told: Mapping[str, Any], tested: Mapping[str, Any] | None
) -> dict[str, Any] | None:
    """The trials that lead, and the parameters in which one of them is not the baseline; None without a feasible trial.
    `gain`: of a measured accuracy, over the baseline's on the same users.

    `told`: the insights; `tested`: the verdict on the trial that was tested, with its metrics on confirm users.
    """
    if told["best"] is None:
        return None
    users = "tune users" if RECORD in study.user_attrs else None
    best, likely = told["best"], told["likely"]
    gained = told["metric"] == "accuracy"
    extreme = "largest" if told["direction"] == "maximize" else "smallest"
    by_number = {trial.number: trial for trial in trials}
    rows = [_row(f"{extreme} measured", best["trial"], best["value"], users)]
    if gained:
        measured = by_number[best["trial"]].user_attrs.get(MEASURED)
        rows[0]["gain"] = measured["metrics"].get("accuracy_gain") if users and measured else None
    if any(row["error"] for row in likely):
        rows.append(_row("likely best", int(likely[0]["number"]), likely[0]["likely"], users, likely[0]["error"]))
    if tested is not None:
        what = "promoted" if tested["promoted"] else "tested, refused"
        rows.append(_row(what, tested["trial"], tested["metrics"].get(told["metric"]), "confirm users"))
        rows[-1]["gain"] = tested["metrics"].get("accuracy_gain") if gained else None
    own = [_moved(study, by_number[row["trial"]]) for row in rows]
    names = list(dict.fromkeys(name for moved in own for name in moved))
    lines = [{"parameter": name, "values": [moved.get(name) for moved in own]} for name in names]
    found: dict[str, Any] = plain({"trials": rows, "parameters": lines})
    return found


def _row(what: str, trial: int, value: float | None, users: str | None, error: float | None = None) -> dict[str, Any]:
    return {"what": what, "trial": trial, "value": value, "error": error, "users": users, "gain": None}


def _moved(study: optuna.Study, trial: FrozenTrial) -> dict[str, Any]:
    """The parameters of a trial that are not the baseline's; of a study without one, all."""
    if RECORD not in study.user_attrs:
        return dict(trial.params)
    rooms = stored_rooms(study)
    return changed(rooms.decode(trial.params), rooms.BASELINE)
