"""The report of a race: one page that needs no network, and the same as JSON and Markdown, beside the deployment."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from shlex import quote
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

from personalization.files import write_atomic
from studies.auto import charts
from studies.auto.arms import NOT_AFFORDED, TRAINED
from studies.auto.clock import spoken_time
from studies.auto.race import Race
from studies.auto.table import table
from studies.storage import whereabouts

HERE = Path(__file__).parent
PAGE = "page.html"


def write_page(race: Race, verdict: Mapping[str, Any] | None, out: Path) -> dict[str, Any]:
    """Write `results/NAME/auto.{html,json,md}` in the home folder; what was found, with the place of the page."""
    found = table(race, verdict)
    folder = race.home / "results" / race.plan.name
    folder.mkdir(parents=True, exist_ok=True)
    steps = next_steps(found, out, whereabouts(race.home, race.plan.spec.get("storage")))
    found |= {"page": str(folder / "auto.html"), "deploy": str(out) if found["promoted"] else None, "next": steps}
    write_atomic(folder / "auto.json", json.dumps(found, indent=2, ensure_ascii=False) + "\n")
    write_atomic(folder / "auto.md", markdown(found))
    write_atomic(folder / "auto.html", html(found))
    return found


def next_steps(found: Mapping[str, Any], out: Path, here: str) -> list[dict[str, str | None]]:
    """What somebody who reads this would do, wherever it is read. `here`: the options that find its studies."""
    steps: list[dict[str, str | None]] = []
    out = out.resolve()
    place = quote(str(out))
    if found["promoted"]:
        command = f"chamtune predict --config {place} --questions QUESTIONS --out ANSWERS"
        steps.append({"says": f"It stands in {out} and answers with:", "command": command})
        if found["cold_start"] is None:
            says = (
                "What it is worth to somebody who has just come would have taken more than half of the time that was "
                "left. That is told by:"
            )
            steps.append({"says": says, "command": f"chamtune promote {found['study']} --out {place}{here}"})
    elif found["study"] is not None:
        says = "More users, or more minutes, may show what these could not. The leader is tested again with:"
        steps.append({"says": says, "command": f"chamtune promote {found['study']} --out {place}{here}"})
    dropped = [arm["arm"] for arm in found["arms"] if str(arm["fate"]).startswith(NOT_AFFORDED)]
    if found["epochs"] is not None and found["epochs"] < TRAINED["epochs"]:
        dropped.append(f"trainings of {TRAINED['epochs']} epochs instead of {found['epochs']}")
    if dropped:
        steps.append({"says": f"More minutes would buy: {', '.join(dropped)}.", "command": None})
    cut = [arm["arm"] for arm in found["arms"] if arm["fate"] == "raced to the end" and arm["trials"]]
    if cut:
        steps.append({"says": f"Still in the race when it ended: {', '.join(cut)}.", "command": None})
    steps.append({"says": "Every arm is a study of its own; look at its trials with:", "command": f"chamtune ui{here}"})
    if found["tracked"] and found["study"] is not None:
        arms = [arm["study"] for arm in found["arms"] if arm["gain"] is not None]
        steps.append(
            {"says": "MLflow gets an arm with:", "command": "\n".join(f"chamtune sync {name}{here}" for name in arms)}
        )
    return steps


def html(found: Mapping[str, Any]) -> str:
    """The page."""
    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=select_autoescape(), undefined=StrictUndefined, trim_blocks=True
    )
    impact, cold = found["impact"], found["cold_start"]
    measured = [arm for arm in found["arms"] if arm["gain"] is not None]
    drawn = {
        "arms": charts.by_arm(
            [arm["arm"] for arm in measured],
            [arm["gain"] for arm in measured],
            [arm["interval"] for arm in measured],
            [_fewer(arm) for arm in measured],
        ),
        "gain": charts.over_time([one["at_s"] for one in found["gains"]], [one["best"] for one in found["gains"]]),
        "impact": charts.by_gain(impact["counts"], impact["edges"], impact["unchanged"]) if impact else "",
        "cold": charts.by_items(
            [str(row["items"]) for row in cold["rows"]],
            [row["accuracy"] for row in cold["rows"]],
            [row["interval"] for row in cold["rows"]],
        )
        if cold
        else "",
    }
    return environment.get_template(PAGE).render(
        found=found,
        sentence=sentence(found),
        whose=whose(found),
        spent=spoken_time(found["spent_s"]),
        confirmed=_confirmed(found),
        cost=_cost(found),
        charts=drawn,
        steps=found["next"],
        untried=[arm for arm in found["arms"] if arm["gain"] is None],
        fewer=_fewer,
        tested=sum(arm["select"] is not None for arm in found["arms"]),
        number=_number,
        signed=_signed,
        interval=_interval,
        p=_p,
        duration=spoken_time,
    )


def _fewer(arm: Mapping[str, Any]) -> bool:
    """Whether an arm is judged on select users alone, since it has learned from those of tune."""
    return bool(arm["judged_on"] == "select")


def sentence(found: Mapping[str, Any]) -> str:
    """The verdict on users that nothing saw."""
    confirm = found["confirm"]
    if confirm is None:
        return str(found["reason"])
    low, high = confirm["ci95"]
    rises = "rises" if confirm["delta_accuracy"] >= 0 else "falls"
    said = (
        f"On {confirm['users']} users that nothing was chosen by, accuracy {rises} from "
        f"{confirm['baseline_accuracy']:.3f} to {confirm['accuracy']:.3f} ({confirm['delta_accuracy']:+.3f}, 95 % "
        f"{low:+.3f} to {high:+.3f}, p = {confirm['p_accuracy']:.4f})."
    )
    personal = confirm["parts"]["by_question"].get("personal")
    if personal is None:
        return said
    return f"{said} {personal['delta']:+.3f} of it is personal: another user's history does not give it."


def whose(found: Mapping[str, Any]) -> str:
    """How sure the verdict is, in a line."""
    if found["confirm"] is None:
        return "The confirm users were not looked at."
    use = found["confirm"]["use"]
    return f"Tested once, by user, at level {found['confirm']['alpha']:.3f}; look {use} at these users."


def _confirmed(found: Mapping[str, Any]) -> list[dict[str, str]]:
    confirm = found["confirm"]
    if confirm is None:
        return []
    itself = {"delta": confirm["delta_accuracy"], "interval": confirm["ci95"], "p_value": confirm["p_accuracy"]}
    after, parts = _number(confirm["accuracy"]), confirm["parts"]["by_question"].items()
    tests = [
        ("the model itself", itself, _number(confirm["baseline_accuracy"]), after),
        *((f"of it {part}", test, "", "") for part, test in parts if part != "gain"),
        *((f"{n} (no model)", test, _number(test["before"]), after) for n, test in confirm["references"].items()),
    ]
    return [
        {
            "name": name,
            "before": before,
            "after": now,
            "gain": _signed(test["delta"]),
            "interval": _interval(test["interval"]),
            "p": _p(test["p_value"]),
        }
        for name, test, before, now in tests
    ]


def _cost(found: Mapping[str, Any]) -> str:
    if not found["confirm"]:
        return ""
    cost = found["confirm"]["cost"]
    return (
        f"A question takes {cost['cost_ms']:.1f} ms ({cost['baseline_ms']:.1f} without), "
        f"a user {cost['user_bytes']} bytes."
    )


def markdown(found: Mapping[str, Any]) -> str:
    """The same, to be read in a terminal or a review."""
    head = (
        f"{found['leader']} is worth it. {sentence(found)}"
        if found["promoted"]
        else f"Nothing was promoted: {found['reason']}."
    )
    lines = [f"# {found['name']}\n", head, "", whose(found), ""]
    lines += [
        "| arm | accuracy | gain, 95 % | on select users | trials | time | fate |",
        "|---|---:|---:|---:|---:|---:|---|",
    ]
    for arm in found["arms"]:
        measured = arm["gain"] is not None
        gain = f"{arm['gain']:+.3f}, {_interval(arm['interval'])}" if measured else ""
        gain += " (select users alone)" if measured and _fewer(arm) else ""
        select = f"{arm['select']['delta']:+.3f}, p {_p(arm['select']['p_corrected'])}" if arm["select"] else ""
        accuracy = _number(arm["accuracy"]) if measured else ""
        lines.append(
            f"| {arm['arm']} | {accuracy} | {gain} | {select} | {arm['trials']} | {spoken_time(arm['seconds'])} | "
            f"{arm['fate']} |"
        )
    lines += [
        "",
        "Accuracies and gains are of tune and select users, on whom arms were chosen: optimistic, no evidence. Arms "
        "that learned from the tune users' labels have theirs on select users alone: compare by the column of these.",
        "",
    ]
    for step in found["next"]:
        lines += [step["says"], *([f"\n    {step['command']}\n"] if step["command"] else [])]
    return "\n".join(lines) + "\n"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _signed(value: float) -> str:
    return f"{value:+.3f}"


def _interval(pair: Any) -> str:
    return f"{pair[0]:+.3f} to {pair[1]:+.3f}"


def _p(value: float) -> str:
    return f"{value:.4f}" if value >= 0.0001 else f"{value:.1g}"
