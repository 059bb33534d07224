"""Insights as tables on standard output."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd

from studies.insights.history import GROUPS, History
from studies.insights.importance import FIXED, SCARCE
from studies.insights.report import BEST, STATES, summary, title
from studies.insights.values import short
from studies.shown.consoles import answers, empty_table, print_table

MATTERS = 12
"""Parameters whose importance is shown."""
SHOWN = 4
"""Values of a parameter that are shown."""


def print_insights(found: History, frames: dict[str, pd.DataFrame], path: dict[str, Any] | None) -> None:
    """Everything, the most useful first."""
    told = summary(found)
    states = ", ".join(f"{told[f'{state}_experiments']} {state}" for state in STATES)
    answers.print(
        f"{told['study']}: {told['total_experiments']} trials, {told['feasible_experiments']} feasible, "
        f"{told['good_experiments']} good ({found.metric} {'from' if found.maximize else 'to'} "
        f"{_number(told['good_threshold'])}); {states}"
    )
    if told["best"] is not None:
        of_which = _of(told["best"])
        value = _number(told["best"]["value"])
        answers.print(f"best: trial {told['best']['trial']}{of_which}, {found.metric} {value}")
    if path is not None:
        print_path(path)
    _print_importance(frames)
    _print_scores(frames["scores"])
    _print_rest(found, frames)
    answers.print(
        "score: p(value | good) / p(value | bad), 1 if unrelated, with 95 % interval; (n): trials; • few of them"
    )


def _number(value: Any) -> str:
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return ""
    return f"{value:.4g}"


def _interval(row: Any) -> str:
    high = "∞" if math.isinf(row["high"]) else f"{row['high']:.2f}"
    return f"[{row['low']:.2f}, {high}]"


def _print_importance(frames: dict[str, pd.DataFrame]) -> None:
    whole = frames["importance"]
    matters = whole[whole["unjudged"] == ""]
    more = [name for name in ("ped_anova", "fanova", "mdi") if name in matters]
    heading = "what good trials hang on: share that a parameter explains alone"
    table = empty_table(heading, "parameter", "importance", "interval", *more, "note")
    for row in matters.head(MATTERS).to_dict("records"):
        extra = [_number(row[name]) for name in more]
        table.add_row(row["parameter"], f"{row['importance']:.3f}", _interval(row), *extra, row["warning"])
    print_table(table)
    if len(matters) > MATTERS:
        answers.print(f"and {len(matters) - MATTERS} more, each {matters['importance'].iloc[MATTERS]:.3f} or less")
    for why, own in whole[whole["unjudged"] != ""].groupby("unjudged", sort=False):
        named = ", ".join(
            f"{row['parameter']} = {short(row['only'])}"
            if why == FIXED
            else f"{row['parameter']} ({row['trials']})"
            if why == SCARCE
            else row["parameter"]
            for row in own.to_dict("records")
        )
        answers.print(f"importance not estimated, {why}: {named}")
    decided = frames["feasibility"]
    for name, own in decided[decided["low"] > 0].groupby("constraint", sort=False):
        by = ", ".join(f"{row['parameter']} {row['importance']:.2f}" for row in own.head(3).to_dict("records"))
        what = "feasible at all" if name == "all" else f"within the bound on {name}"
        answers.print(f"whether a trial is {what} ({own.iloc[0]['kept']:.0%} are) hangs on {by}")


def _print_scores(scores: pd.DataFrame) -> None:
    for group in dict.fromkeys([*GROUPS, *scores["group"]]):
        own = scores[scores["group"] == group]
        if not len(own):
            continue
        table = empty_table(group, "parameter", "value", "score", "interval", "(n)", "good", "mean", "best")
        for name, rows in own.groupby("parameter", sort=False):
            shown = rows.head(SHOWN).to_dict("records")
            for place, row in enumerate(shown):
                faded = "• " if row["confidence"] == "low" else ""
                cells = [f"{row['score']:.2f}", _interval(row), f"({row['count']})", str(row["good_count"])]
                told = "" if place else title(str(name))
                table.add_row(told, faded + short(row["value"]), *cells, _number(row["mean"]), _number(row["best"]))
            if len(rows) > SHOWN:
                table.add_row("", f"and {len(rows) - SHOWN} more")
        print_table(table)


def _print_rest(found: History, frames: dict[str, pd.DataFrame]) -> None:
    pairs = frames["interactions"]
    for row in pairs[pairs["low"] > 0].head(3).to_dict("records"):
        answers.print(
            f"{row['first']} and {row['second']} together explain {row['interaction']:.2f} more {_interval(row)}"
        )
    for row in frames["prices"].to_dict("records"):
        said = f"costs {row['price']:.4g} {found.metric}" if row["binds"] else "costs nothing"
        answers.print(f"the bound on {row['constraint']} {said} among these trials")
    top = frames["likely"].head(min(BEST, 3)).to_dict("records")
    if top:
        said = "; ".join(f"trial {r['number']}{_of(r)} {r['likely']:.4g} (measured {r['value']:.4g})" for r in top)
        answers.print(f"likely best: {said}")
    for place, row in enumerate(frames["suggestions"].to_dict("records"), start=1):
        change = ", ".join(f"{name} {_value(value)}" for name, value in row["change"].items())
        answers.print(f"suggestion {place} ({row['kind']}): {change}: {row['reason']}")


def _of(row: dict[str, Any]) -> str:
    """Of which study a trial is, where there are several."""
    return f" of {row['study']}" if "study" in row else ""


def _value(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else short(str(value))


def print_path(path: dict[str, Any]) -> None:
    """The way from the baseline to the winner."""
    where = (
        "confirm users, which a promotion looked at" if path["measured_on"] == "confirm" else "tune users: optimistic"
    )
    heading = f"from the baseline to trial {path['trial']}, {path['metric']}, measured on the {where}"
    table = empty_table(heading, "step", "to", "gain", "interval by user", "alone", "without", "users better, worse")
    for row in path["steps"]:
        to = ", ".join(_value(value) for value in row["values"].values())
        users = "" if row["users"] is None else f"{row['users']['better']}, {row['users']['worse']}"
        told = f"[{row['low']:+.3f}, {row['high']:+.3f}]" + (" could be dropped" if row["droppable"] else "")
        table.add_row(
            row["step"], to, f"{row['gain']:+.3f}", told, f"{row['alone']:+.3f}", f"{-row['without']:+.3f}", users
        )
    table.add_row("all", "", f"{path['gain']:+.3f}", f"[{path['low']:+.3f}, {path['high']:+.3f}]")
    print_table(table)
