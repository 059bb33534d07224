"""A report of monitoring, in lines."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from serving.monitor import doubts, minute, standing

SHOWN = 10
"""Users and streams that are listed."""


def lines(found: Mapping[str, Any]) -> list[str]:
    """A report as it is printed."""
    first = (
        f"{found['answers']} answers, {found['of_this_config']} by generation {found['generation']} or its content, "
        f"to {found['users']} users; {found['labelled']} with a label"
    )
    out = [first, *map(_constraint, found["constraints"]), _calibration(found["calibration"])]
    if found["ratio"] is not None:
        own = found["ratio"]
        fault = "; this is no chance: look for what loses users of one arm" if own["fault"] else ""
        out.append(f"split: {own['a']} and {own['b']} users, meant {own['share']:.1%}, p = {own['p']:.2g}{fault}")
    out.append(_comparison(found["comparison"], found["other"]))
    if found["left_out"]:
        out.append(f"  {found['left_out']} answers of other configs, or of a split before this one, are left out")
    out += [
        f"  user {one['user']}: loses {one['own']:.3f} on {one['labels']} labels, {one['loss']:.3f} shrunken"
        for one in found["losers"]
    ]
    if found["losers"]:
        out.append("  `chamtune retune DEPLOY --data LOG --by-user` tries strengths of each user's own for them")
    out += [
        f"drift: {one['what']} since {minute(one['since'])}: {one['before']} -> {one['after']}"
        for one in found["drift"][:SHOWN]
    ] or ["no drift"]
    changed = found["changed_users"]
    if changed:
        out.append(f"{len({one['user'] for one in changed})} users changed:")
    out += [
        f"  user {one['user']}: {one['what']}: {one['before']} -> {one['after']}, p = {one['p']:.2g}"
        for one in changed[:SHOWN]
    ]
    out += [f"no fault yet: {doubt}" for doubt in doubts(found)]
    out += [f"FAULT: {fault}" for fault in found["faults"]]
    if found["rolled_back"] is not None:
        own = found["rolled_back"]
        said = f"rolled back: generation {own['generation']}, with the content of {own['restored_from']}"
        out.append(said if own["reason"] is None else f"not rolled back: {own['reason']}")
    if found["retuned"] is not None:
        own = found["retuned"]
        said = f"generation {own['generation']} is promoted" if own["promoted"] else "nothing is promoted"
        said = said if own["stopped_by"] is None else "stopped"
        out.append(f"tuned again for {'; '.join(own['why'])}: {said}: {own['reason']}")
    return out


def _constraint(one: Mapping[str, Any]) -> str:
    if one["interval"] is None:
        return f"constraint {one['metric']} {one['bound']}: {one['state']}"
    low, high = one["interval"]
    said = f"constraint {one['metric']} {one['bound']}: {one['value']} [{low}, {high}], {standing(one)}"
    lately = one["lately"]
    if standing(one) == one["state"]:
        return said
    low, high = lately["interval"]
    return f"{said}: {lately['value']} [{low}, {high}], {lately['answers']} answers"


def _calibration(one: Mapping[str, Any]) -> str:
    if one["estimate"] is None:
        return "calibration: this config has answered nothing yet"
    said = f"accuracy as the probabilities estimate it: {one['estimate']:.3f}"
    if one["accuracy"] is None:
        return f"{said}; {one['state']}"
    low, high = one["interval"]
    seen = f"where labels came: {one['accuracy']:.3f}"
    return f"{said}; {seen}, too high by {one['gap']:+.3f} [{low}, {high}]: {one['state']}"


def _comparison(one: Mapping[str, Any] | None, other: str | None) -> str:
    if one is None:
        none = "no label has come yet for an answer that it gave, too"
        return "no other config to compare with" if other is None else f"nothing to compare with {other}: {none}"
    told = f"{one['kind']}, {one['users']} users with {one['labels_by_user']} labels or more"
    between = "no interval yet" if one["interval"] is None else "[{:+.3f}, {:+.3f}]".format(*one["interval"])
    undecided = ", no decision yet" if one["verdict"] == "go on" else ""
    return (
        f"accuracy of this one minus that of {other or 'the other config'}: {one['mean']:+.3f} {between} ({told}): "
        f"{one['verdict']}{undecided}"
    )
