"""Several studies side by side, on the select users, whom no trial saw.

Each study enters with its best feasible trial on tune, its temperature settled as for a promotion. Gains are paired by
question and tested by user against the first study; their p-values are corrected for their number (Holm). The cost is
measured: a few select questions are answered afresh by what would be deployed, with nothing in the store.
"""

from __future__ import annotations

import time
from typing import Any, NamedTuple

from personalization.deployment import served
from personalization.errors import UsageError
from personalization.evaluation import Evaluation
from search_spaces import ChainParams
from studies.study import OpenStudy, finished, ranked
from studies.verdict.selection import settled
from tracking import figures
from tracking.significance import holm, paired, user_interval, user_totals

TIMED = 16
"""Questions that are answered to measure the cost of one."""


class Entry(NamedTuple):
    """One system: its name, trial and parameters, its answers on the select users, milliseconds a question."""

    name: str
    trial: int | None
    params: dict[str, Any]
    answers: Evaluation
    cost_ms: float


def compare(opened: list[OpenStudy]) -> dict[str, Any]:
    """The comparison, JSON-able. UsageError where studies have other select users, or none is feasible."""
    first = opened[0]
    if not first.splits.select.questions:
        raise UsageError(f"study {first.spec.name} has no select users to compare on; give data.shares.select more")
    for other in opened[1:]:
        if other.splits.select.fingerprint() != first.splits.select.fingerprint():
            raise UsageError(
                f"studies {first.spec.name} and {other.spec.name} have other select users; "
                "compare studies of the same data and shares"
            )
    entries = [_entry(study) for study in opened]
    base = entries[0].answers
    tests = [paired(base.correct, entry.answers) for entry in entries[1:]]
    corrected = holm([test["p_value"] for test in tests])
    rows: list[dict[str, Any]] = []
    for number, entry in enumerate(entries):
        row = {**_row(entry), "gain": None}
        if number:
            gains, _ = user_totals(entry.answers, entry.answers.correct.astype(int) - base.correct.astype(int))
            row["gain"] = {
                **tests[number - 1],
                "p_corrected": corrected[number - 1],
                "users_better": int((gains > 0).sum()),
                "users_worse": int((gains < 0).sum()),
                "users_equal": int((gains == 0).sum()),
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
    hits, sizes = user_totals(entry.answers, entry.answers.correct)
    shown = ("accuracy", "macro_f1", "nll", "mae", "rmse", "entropy", "top1_share")
    return {
        "study": entry.name,
        "trial": entry.trial,
        "params": entry.params,
        **{name: entry.answers.metrics[name] for name in shown if name in entry.answers.metrics},
        "ci95": list(user_interval(hits, sizes)),
        "cost_ms": round(entry.cost_ms, 2),
    }


def _entry(opened: OpenStudy) -> Entry:
    best = next(ranked(finished(opened.study.get_trials(deepcopy=False)), dict(opened.spec.optimize)), None)
    if best is None:
        raise UsageError(f"study {opened.spec.name} has no feasible trial; run more, or relax its constraints")
    params = settled(opened, opened.rooms.decode(best.params))
    answers = opened.objective.evaluate(params, "select")
    return Entry(opened.spec.name, best.number, params.flat(), answers, cost_ms(opened, params))


def cost_ms(opened: OpenStudy, params: ChainParams) -> float:
    """Milliseconds to answer one question of the select users, by what would be deployed, with an empty store."""
    tune, questions = opened.splits.tune, opened.splits.select.questions[:TIMED]
    deployment = served({"task": tune.task, "labels": tune.labels}, opened.objective.fitted(params), opened.scorer)
    deployment.predict(tune.questions[:1])
    opened.scorer.backbone.forget()
    started = time.perf_counter()
    deployment.predict(questions)
    return 1000 * (time.perf_counter() - started) / max(len(questions), 1)
