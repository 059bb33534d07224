"""What a promoted chain is worth to somebody who has just come: its accuracy by how much is known.

The confirm questions are answered again with only the newest 0, 1, 2, 4, 8 and 16 of the items that each of them knows,
by what would be deployed, as somebody new would be answered: an adapter of a user's own is there with all items alone.
The curve is that of the users who have a history; those without any are a group of their own. Nothing is judged by it:
it is made once the gates have been passed, and describes. Cost: up to six more passes over the confirm questions.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from personalization.data.exchange import newest
from personalization.data.known import known_items, newcomers
from personalization.evaluation import Evaluation
from personalization.files import write_atomic
from search_spaces import ChainParams
from studies.study import OpenStudy
from tracking import figures
from tracking.significance import gain_interval, user_interval, user_totals

COUNTS = (0, 1, 2, 4, 8, 16)
NAMES = ("cold_start.png", "cold_start.md", "cold_start.json")
"""In the order in which they are written: where the last is, the others are."""
NOTE = (
    "Measured on the confirm users after the gates had been passed: a description, not a test. The same questions each "
    "time, with only the newest items that each knows."
)


def cold_start(opened: OpenStudy, params: ChainParams, state: str, folder: Path) -> dict[str, Any]:
    """The curve of a look's candidate, JSON-able; from the folder where it was made before."""
    kept = folder / NAMES[-1]
    if kept.is_file():
        found: dict[str, Any] = json.loads(kept.read_text(encoding="utf-8"))
        if found["state"] == state:
            return found
    found = {"note": NOTE, "state": state, **curve(opened, params)}
    rows = found["rows"]
    picture = figures.cold_start(
        [str(row["items"]) for row in rows],
        [row["accuracy"] for row in rows],
        [tuple(row["interval"]) for row in rows],
        found["baseline_accuracy"],
    )
    files: dict[str, bytes | str] = dict(
        zip(NAMES, (picture, table(found), json.dumps(found, indent=2) + "\n"), strict=True)
    )
    for name, content in files.items():
        write_atomic(folder / name, content)
    return found


def curve(opened: OpenStudy, params: ChainParams) -> dict[str, Any]:
    """`rows`: one a number of items, of the users with a history; `without_history`: those of nobody's, or None."""
    confirm = opened.splits.confirm
    baseline, whole = (opened.objective.evaluate(p, "confirm") for p in (opened.rooms.BASELINE, params))
    known = np.array([len(known_items(confirm.task, question)) for question in confirm.questions])
    strangers = newcomers(confirm)
    bare = np.array([question.user_id in strangers for question in confirm.questions])
    some, none = np.flatnonzero(~bare), np.flatnonzero(bare)
    rows = []
    for count in [count for count in COUNTS if count < known.max()] if len(some) else []:
        answers = opened.objective.evaluate_with(params, "confirm", newest(confirm, count))
        rows.append({"items": count, **_row(baseline, answers, some, known >= count)})
    if len(some):
        rows.append({"items": "all", **_row(baseline, whole, some, known > 0)})
    return {
        "rows": rows,
        "baseline_accuracy": baseline.only(some).metrics["accuracy"] if len(some) else None,
        "without_history": _row(baseline, whole, none, known == 0) if len(none) else None,
    }


def _row(
    baseline: Evaluation, answers: Evaluation, rows: NDArray[np.int64], knowing: NDArray[np.bool_]
) -> dict[str, Any]:
    """Accuracy and gain on some questions; `knowing` [n]: which of all questions know so many items."""
    before, after = baseline.only(rows), answers.only(rows)
    return {
        "questions": len(rows),
        "users": len(after.users[0]),
        "knowing": int(knowing[rows].sum()),
        "accuracy": after.metrics["accuracy"],
        "interval": list(user_interval(*user_totals(after, after.correct))),
        "gain": after.metrics["accuracy"] - before.metrics["accuracy"],
        "gain_interval": list(gain_interval(before, after, "accuracy")),
    }


def table(found: dict[str, Any]) -> str:
    """The curve as Markdown."""
    lines = [
        f"# Cold start\n\n{found['note']}\n",
        "| items | questions that know so many | accuracy | 95 % | gain | 95 % |",
    ]
    lines.append("|---|" + "---:|" * 5)
    alone = found["without_history"]
    for row in [*found["rows"], *([{"items": "users without any", **alone}] if alone else [])]:
        (low, high), (worst, best) = row["interval"], row["gain_interval"]
        lines.append(
            f"| {row['items']} | {row['knowing']} of {row['questions']} | {row['accuracy']:.3f} | {low:.3f} to "
            f"{high:.3f} | {row['gain']:+.3f} | {worst:+.3f} to {best:+.3f} |"
        )
    return "\n".join(lines) + "\n"
