"""Several studies side by side, on the select users, whom no trial saw.

Each study enters with its best feasible trial on tune, its temperature settled as for a promotion. Gains are paired by
question and tested by user against the first study; their p-values are corrected for their number (Holm). What of a
gain is general and what is personal is told apart by exchanged histories (`tracking.parts`), uncorrected. The cost is
measured beside (`cost`).
"""

from __future__ import annotations

from typing import Any, NamedTuple

from personalization.data.exchange import Exchange, exchange
from personalization.errors import UsageError
from studies.study import OpenStudy, best_feasible
from studies.verdict.cost import Cost, cost_of
from studies.verdict.personal import Answers, answers_of, parts
from studies.verdict.selection import settled
from tracking import figures
from tracking.significance import gains_by_user, holm, moved_users, paired, user_interval, user_totals


class Entry(NamedTuple):
    """One system: its name, trial and parameters, its answers on the select users, what it costs."""

    name: str
    trial: int
    params: dict[str, Any]
    answers: Answers
    cost: Cost


def compare(opened: list[OpenStudy]) -> dict[str, Any]:
    """The comparison, JSON-able. UsageError where studies have other select users, or none is feasible."""
    first = opened[0]
    if not first.splits.select.questions:
        raise UsageError(f"study {first.spec.name} has no select users to compare on; give data.shares.select more")
    for other in opened[1:]:
        if other.splits.select.fingerprint() != first.splits.select.fingerprint():
            raise UsageError(
                f"studies {first.spec.name} and {other.spec.name} have other select users; "
                "compare studies of the same data, and give both the same data.shares"
            )
    swapped = exchange(first.splits.select)
    entries = [_entry(study, swapped) for study in opened]
    base = entries[0].answers.own
    tests = [paired(base.correct, entry.answers.own) for entry in entries[1:]]
    corrected = holm([test["p_value"] for test in tests])
    rows: list[dict[str, Any]] = []
    for number, entry in enumerate(entries):
        row = {**_row(entry), "gain": None}
        if number:
            row["gain"] = {
                **tests[number - 1],
                "p_corrected": corrected[number - 1],
                "parts": parts(entries[0].answers, entry.answers, swapped, "accuracy"),
                **moved_users(gains_by_user(base, entry.answers.own)[0]),
            }
        rows.append(row)
    return {
        "measured_on": "select",
        "questions": len(base.gold),
        "users": len(base.users[0]),
        "against": entries[0].name,
        "rows": rows,
    }


def comparison_figure(result: dict[str, Any]) -> bytes:
    """Accuracy of each with its interval."""
    rows = result["rows"]
    return figures.comparison(
        [row["study"] for row in rows], [row["accuracy"] for row in rows], [tuple(row["ci95"]) for row in rows]
    )


def _row(entry: Entry) -> dict[str, Any]:
    own = entry.answers.own
    hits, sizes = user_totals(own, own.correct)
    shown = ("accuracy", "macro_f1", "nll", "mae", "rmse", "entropy", "top1_share")
    return {
        "study": entry.name,
        "trial": entry.trial,
        "params": entry.params,
        **{name: own.metrics[name] for name in shown if name in own.metrics},
        "ci95": list(user_interval(hits, sizes)),
        **entry.cost._asdict(),
    }


def _entry(opened: OpenStudy, swapped: Exchange | None) -> Entry:
    best = best_feasible(opened)
    params = settled(opened, opened.rooms.decode(best.params))
    answers = answers_of(opened, params, "select", swapped)
    return Entry(opened.spec.name, best.number, params.flat(), answers, cost_of(opened, params, best.number))
