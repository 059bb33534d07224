"""Fields of trials: what is known of a trial beside its parameters, such as how much it trained and on what data.

They are computed when a trial ends, and lie in what was measured of it. A trial of before has none, and a finished one
cannot be changed: `backfill` works them out again, once, and keeps them with the study.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from studies.insights.history import METRICS, History, Parameter
from studies.study import OpenStudy
from studies.trial import MEASURED, storable_fields

KEPT = "fields:"
"""Study attribute, with a trial's number behind it: the fields of a trial that had none when it ended."""
Fields = dict[int, dict[str, Any]]


def fields_of(trials: Sequence[FrozenTrial], kept: Mapping[str, Any]) -> Fields:
    """Trial number -> its fields: its own, those of the trial whose result it repeats, or those kept with the study."""
    found: Fields = {}
    for trial in trials:
        measured = trial.user_attrs.get(METRICS)
        if not isinstance(measured, dict):
            continue
        repeated = measured.get("duplicate_of")
        told = measured.get("fields") or (found.get(repeated) if isinstance(repeated, int) else None)
        told = told or kept.get(f"{KEPT}{trial.number}")
        if isinstance(told, dict):
            found[trial.number] = {name: value for name, value in told.items() if not isinstance(value, dict)}
    return found


def with_fields(history: History, fields: Fields) -> History:
    """The history with a column a field; the group of a field stands before the dot of its name."""
    if not fields:
        return history
    names = list(dict.fromkeys(name for told in fields.values() for name in told))
    frame, known = history.trials.copy(), dict[str, Parameter]()
    for name in names:
        column = [fields.get(number, {}).get(name) for number in frame["number"]]
        items = any(isinstance(value, list) for value in column)
        frame[f"params_{name}"] = [tuple(map(str, value)) if isinstance(value, list) else value for value in column]
        discrete = not any(isinstance(value, float) for value in column)
        known[name] = Parameter(name, name.partition(".")[0], discrete, items)
    return replace(history, trials=frame, fields=known)


def backfill(opened: OpenStudy) -> dict[str, int]:
    """Work out the fields of the complete trials that have none; how many were filled, and how many had theirs.

    What a trial needs is read from what is stored; what is stored no longer is run again.
    """
    trials = opened.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    had = fields_of(trials, opened.study.user_attrs)
    missing = [trial for trial in trials if trial.number not in had and MEASURED in trial.user_attrs]
    for trial in missing:
        facts = opened.objective.facts(opened.rooms.decode(trial.params))
        opened.study.set_user_attr(f"{KEPT}{trial.number}", storable_fields(facts))
    return {"filled": len(missing), "had": len(had)}
