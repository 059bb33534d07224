"""Where a result comes from: the figures by label, by groups of users and by user."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from personalization.evaluation import Evaluation

WORST = 10
"""Users listed in the table; the JSON has all."""


KINDS = {"groups": "group", "histories": "history"}
"""Kinds of groups of users: those that a stage has made; whether anything is known of a user (some, none)."""
Groups = Mapping[str, Mapping[str, int | str]]
"""Of each kind that there is: the group of each user."""


def breakdown(baseline: Evaluation, candidate: Evaluation, groups: Groups) -> dict[str, Any]:
    """JSON-able: `labels`, each kind of `groups` and `users`, each with n and both systems' figures."""
    users = np.array(candidate.user_ids)
    labels = {}
    for column, label in enumerate(candidate.labels):
        gold, said = candidate.gold == column, candidate.predicted == column
        hits = int((gold & said).sum())
        labels[label] = {
            "n": int(gold.sum()),
            "baseline_recall": _share(baseline.correct[gold]),
            "recall": _share(candidate.correct[gold]),
            "precision": hits / int(said.sum()) if said.any() else None,
            "f1": 2 * hits / int(gold.sum() + said.sum()) if (gold | said).any() else None,
        }
    return {
        "labels": labels,
        **{kind: _by_group(baseline, candidate, groups.get(kind, {})) for kind in KINDS},
        "users": {user: _accuracies(baseline, candidate, users == user) for user in dict.fromkeys(candidate.user_ids)},
    }


def breakdown_table(found: Mapping[str, Any], note: str) -> str:
    """The same as Markdown; of the users those that lose most."""
    lines = [f"# By label, group and user\n\n{note}\n", "| label | n | baseline recall | recall | precision | F1 |",
             "|---|---:|---:|---:|---:|---:|"]  # fmt: skip
    for label, row in found["labels"].items():
        values = " | ".join(_cell(row[name]) for name in ("baseline_recall", "recall", "precision", "f1"))
        lines.append(f"| {label} | {row['n']} | {values} |")
    of_users = {title: found[kind] for kind, title in KINDS.items()}
    for title, rows in (of_users | {"user (those that lose most)": _losers(found["users"])}).items():
        if rows:
            lines += ["", f"| {title} | n | baseline accuracy | accuracy |", "|---|---:|---:|---:|"]
            lines += [
                f"| {name} | {row['n']} | {_cell(row['baseline_accuracy'])} | {_cell(row['accuracy'])} |"
                for name, row in rows.items()
            ]
    return "\n".join(lines) + "\n"


def _by_group(baseline: Evaluation, candidate: Evaluation, group_of: Mapping[str, int | str]) -> dict[str, Any]:
    own = np.array([group_of.get(user, -1) for user in candidate.user_ids])
    return {str(group): _accuracies(baseline, candidate, own == group) for group in np.unique(own) if group_of}


def _accuracies(baseline: Evaluation, candidate: Evaluation, rows: np.ndarray[Any, Any]) -> dict[str, Any]:
    return {
        "n": int(rows.sum()),
        "baseline_accuracy": _share(baseline.correct[rows]),
        "accuracy": _share(candidate.correct[rows]),
    }


def _share(hits: np.ndarray[Any, Any]) -> float | None:
    return float(hits.mean()) if len(hits) else None


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _losers(users: Mapping[str, Any]) -> dict[str, Any]:
    worst = sorted(users.items(), key=lambda entry: entry[1]["accuracy"] - entry[1]["baseline_accuracy"])
    return {name: row for name, row in worst[:WORST] if row["accuracy"] < row["baseline_accuracy"]}
