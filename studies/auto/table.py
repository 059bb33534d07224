"""What a race found, as plain values: the verdict, a row for each arm, gain against time, whom it helps.

Accuracies and gains are of tune and select users together, on whom arms were chosen: optimistic, and labelled so. `p`
is of select users alone, whom no trial saw, by the sign flip, and corrected for the number of arms (Holm). The verdict
is of confirm users, whom nothing saw. `oracle`: every user answered by whichever arm did better on the same questions;
nobody can know that before the answers, so it cannot be had.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from personalization.data.exchange import exchange
from personalization.data.splits import PARTS
from studies.auto.ending import unpromoted
from studies.auto.judging import Entry, baseline, unmeasured
from studies.auto.race import Race
from studies.auto.routing import promised
from studies.results import changed
from studies.verdict.personal import answers_of, parts
from tracking.significance import gains_by_user, holm, moved_users, paired, user_interval, user_totals
from tracking.spool import OFF

SHOWN = ("accuracy", "macro_f1", "nll")
PARTS_OF = 60.0
"""Seconds that may be spent on telling what of the arms' gains is personal, if they are left."""


def table(race: Race, verdict: Mapping[str, Any] | None) -> dict[str, Any]:
    """JSON-able: plan, verdict, arms, gain against time, users, commands; `epochs` that trainings had, None without."""
    best, model = race.best(), race.base.spec.model
    rows = [_row(race, name, kept, verdict) for name, kept in race.journal.content["arms"].items()]
    tested = [row for row in rows if row.get("select") is not None]
    for row, p_value in zip(tested, holm([row["select"]["p_value"] for row in tested]), strict=True):
        row["select"]["p_corrected"] = p_value
    rows.sort(key=lambda row: -(row["gain"] if row["gain"] is not None else -np.inf))
    return {
        "name": race.plan.name,
        "promoted": bool(verdict and verdict["promoted"]),
        "reason": unpromoted(best) if verdict is None else str(verdict["reason"]),
        "leader": None if best is None else best.arm.name,
        "study": None if best is None else best.opened.spec.name,
        "params": None if best is None or best.params is None else _plain(best),
        "minutes": race.plan.minutes,
        "epochs": race.scene and race.scene.epochs,
        "spent_s": round(race.journal.spent_s, 1),
        "metric": next(iter(race.base.spec.optimize)),
        "model": model.path if model.retriever is None else f"{model.path} (similar items by {model.retriever})",
        "tracked": race.base.spec.tracking != OFF,
        "users": {part: len({q.user_id for q in race.base.splits.part(part).questions}) for part in PARTS},
        "questions": {part: len(race.base.splits.part(part)) for part in PARTS},
        "baseline": _metrics(race, None),
        "arms": rows,
        "gains": _gain_over_time(race),
        "impact": None if best is None else _impact(race, best),
        "routing": _routing(race),
        "confirm": None if verdict is None else _confirm(verdict),
        "cold_start": None if verdict is None else verdict.get("cold_start"),
    }


def _plain(entry: Entry) -> dict[str, Any]:
    assert entry.params is not None
    return changed(entry.opened.objective.resolved(entry.params), entry.opened.rooms.BASELINE)


def _metrics(race: Race, entry: Entry | None) -> dict[str, float]:
    """Of an arm, or of the model itself, on the users that it is judged on."""
    found = baseline(race.base) if entry is None else entry.seen
    assert found is not None
    hits, sizes = user_totals(found, found.correct)
    shown = {name: float(found.metrics[name]) for name in SHOWN if name in found.metrics}
    return {**shown, "accuracy_by_user": float((hits / sizes).mean())}


def _row(race: Race, name: str, kept: Mapping[str, Any], verdict: Mapping[str, Any] | None) -> dict[str, Any]:
    entry = race.entries.get(name)
    slices = kept["slices"]
    row: dict[str, Any] = {
        "arm": name,
        "says": kept["says"],
        "study": race.plan.study_of(name),
        "trials": sum(one["trials"] for one in slices),
        "seconds": round(sum(one["seconds"] for one in slices), 1),
        "gain": None,
        "select": None,
        "fate": kept["fate"],
    }
    seen = None if entry is None else entry.seen
    if entry is None or seen is None or entry.standing is None or entry.params is None:
        return row | {"fate": kept["fate"] or ("not begun" if entry is None else unmeasured(entry))}
    before = baseline(race.base, entry.answers)
    gains, sizes = gains_by_user(before, seen)
    per_question = race.scene.pass_s / race.scene.questions if race.scene else 0.0
    row |= {
        "judged_on": " and ".join(entry.answers),
        **_metrics(race, entry),
        "baseline_accuracy": float(before.metrics["accuracy"]),
        "gain": float(gains.sum() / sizes.sum()),
        "interval": list(user_interval(gains, sizes)),
        "gain_by_user": float((gains / sizes).mean()),
        **moved_users(gains),
        "about_ms": round(1000 * per_question * (1 + entry.answering(race.scene)), 1) if race.scene else None,
        "select": _on_select(race, entry),
    }
    best = race.best()
    if best is entry:
        row["fate"] = "promoted" if verdict and verdict["promoted"] else "leader, not promoted"
    return row | {"fate": row["fate"] or "raced to the end"}


def _on_select(race: Race, entry: Entry) -> dict[str, Any] | None:
    """The gain on select users, whom no trial saw, and what of it is personal where time is left to ask."""
    opened = entry.opened
    if not opened.splits.select.questions or entry.params is None:
        return None
    plain = opened.rooms.BASELINE
    before = opened.objective.evaluate(plain, "select")
    after = opened.objective.evaluate(entry.params, "select")
    found: dict[str, Any] = {**paired(before.correct, after), "personal": None}
    assert race.scene is not None
    share = len(opened.splits.select) / max(1, race.scene.questions)
    if race.scene.pass_s * share * (1 + entry.answering(race.scene)) < min(PARTS_OF, race.remaining_s / 4):
        swapped = exchange(opened.splits.select)
        before_swapped, after_swapped = (
            answers_of(opened, asked, "select", swapped) for asked in (plain, entry.params)
        )
        told = parts(before_swapped, after_swapped, swapped, "accuracy")
        found["personal"] = told["by_question"].get("personal")
    return found


def _gain_over_time(race: Race) -> list[dict[str, Any]]:
    """The best gain so far, after each slice."""
    slices = [
        {"at_s": one["at_s"], "gain": one["gain"], "arm": name}
        for name, kept in race.journal.content["arms"].items()
        for one in kept["slices"]
        if "at_s" in one
    ]
    slices.sort(key=lambda one: one["at_s"])
    best, found = 0.0, []
    for one in slices:
        best = max(best, one["gain"])
        found.append({**one, "best": best})
    return found


def _impact(race: Race, best: Entry) -> dict[str, Any] | None:
    """How many users gain and lose by how much, and who loses most."""
    if (seen := best.seen) is None:
        return None
    gains, sizes = gains_by_user(baseline(race.base, best.answers), seen)
    shares = gains / sizes
    counts, edges = np.histogram(shares[shares != 0], bins=np.linspace(-1, 1, 11))
    order = np.argsort(shares, kind="stable")
    names = seen.users[0]
    losing = [
        {"user": names[i], "gain": float(shares[i]), "questions": int(sizes[i])} for i in order[:5] if shares[i] < 0
    ]
    for one in losing:
        one["helped_by"] = _helped_by(race, one["user"], one["gain"])
    return {
        "counts": counts.tolist(),
        "edges": [round(float(edge), 2) for edge in edges],
        "unchanged": int((shares == 0).sum()),
        "losing": losing,
    }


def _helped_by(race: Race, user: str, least: float) -> str | None:
    """The arm that does most for a user, if it does more than this."""
    best: tuple[float, str | None] = (least, None)
    for name, entry in race.entries.items():
        if (seen := entry.seen) is None or user not in seen.users[0]:
            continue
        gains, sizes = gains_by_user(baseline(race.base, entry.answers), seen)
        own = float(dict(zip(seen.users[0], gains / sizes, strict=True))[user])
        if own > best[0]:
            best = (own, name)
    return best[1]


def _routing(race: Race) -> dict[str, Any] | None:
    """Gain of the one arm that is best, of routing users between arms, and if every user had the arm that did best."""
    told = promised(race)
    if told is None:
        return None
    found, entries = told
    total = float(race.sizes.sum())
    gains = np.stack([entry.standing.gains for entry in entries if entry.standing is not None])
    oracle = np.maximum(gains.max(axis=0), 0)
    return {
        "one_arm": float(gains[0].sum() / total),
        "oracle": float(oracle.sum() / total),
        "routing": {"gain": found.gain, "interval": list(found.interval), "moved": found.moved},
    }


def _confirm(verdict: Mapping[str, Any]) -> dict[str, Any] | None:
    found = verdict["confirm"]
    if found is None:
        return None
    names = ("n", "users", "baseline_accuracy", "accuracy", "delta_accuracy", "ci95", "p_accuracy", "alpha", "use")
    kept = {name: found[name] for name in names}
    references = {
        name: {key: beside["tests"]["accuracy"][key] for key in ("before", "delta", "interval", "p_value")}
        for name, beside in found["references"].items()
    }
    return {
        **kept,
        "refit": found.get("refit"),
        "parts": found["parts"],
        "cost": found["cost"],
        "references": references,
        "helped": found["helped"],
        "hurt": found["hurt"],
    }
