"""What to try next, each with its reason and as a whole point that no trial had.

*improve*: take the best trial and give it the leading value of a parameter that much hangs on, where the interval of
that value's score leaves out 1 and the best trial has another. *together*: all these changes at once. *likely*: where
the likely best trial is another one than the luckiest, a point between the two. *explore*: a value that was tried fewer
than three times, put into the best trial.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from studies.insights.history import History, Parameter, choice_of, there
from studies.insights.values import EXACT, levels, said, short

MOST = 8


class Suggestion(NamedTuple):
    """One point to try: what kind, what is changed in the best trial, why, and all its parameters."""

    kind: str
    change: dict[str, Any]
    reason: str
    params: dict[str, Any]


def suggestions(
    history: History, scores: pd.DataFrame, importance: pd.DataFrame, likely: pd.DataFrame
) -> list[Suggestion]:
    """At most `MOST` suggestions, the surest first; [] where no trial is feasible."""
    kept = history.feasible
    searched = {name: p for name, p in history.parameters.items() if p.distribution is not None}
    if not len(kept) or not searched:
        return []
    best = kept.loc[kept["gain"].idxmax()]
    base = {name: best[f"params_{name}"] for name in searched if not pd.isna(best[f"params_{name}"])}
    found = _improvements(history, scores, importance, base)
    if len(found) > 1:
        change = {name: value for one in found for name, value in one.change.items()}
        reason = "the changes above at once; each is backed alone, their sum is not"
        found.append(Suggestion("together", change, reason, {**base, **change}))
    found += _between(history, likely, base, searched)
    found += _unexplored(history, base)
    fresh, seen = list[Suggestion](), set[tuple[tuple[str, str], ...]]()
    for one in found:
        if _key(one.params) not in seen and not _tried(kept, one.params):
            seen.add(_key(one.params))
            params = {name: _typed(searched[name], value) for name, value in one.params.items()}
            fresh.append(one._replace(params=params, change={name: params[name] for name in one.change}))
    return fresh[:MOST]


def _tried(kept: pd.DataFrame, params: Mapping[str, Any]) -> bool:
    """Whether a trial had these parameters."""
    same = np.ones(len(kept), dtype=bool)
    for name, value in params.items():
        same &= (kept[f"params_{name}"] == value).to_numpy(dtype=bool)
    return bool(same.any())


def _key(params: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    return tuple(sorted((name, str(value)) for name, value in params.items()))


def _typed(parameter: Parameter, value: Any) -> Any:
    """The value as its distribution has it: a column with missing ones turns whole numbers into others."""
    value = value.item() if isinstance(value, np.generic) else value
    if isinstance(parameter.distribution, IntDistribution):
        return int(value)
    if isinstance(parameter.distribution, CategoricalDistribution):
        return choice_of(parameter.distribution, value)
    return value


def _example(parameter: Parameter, kept: pd.DataFrame, label: str) -> Any:
    """A value of a level that the distribution holds: of a bin, the middle of its good half."""
    found = levels(parameter, kept[f"params_{parameter.name}"])
    place = found.labels.index(label)
    mine = kept[found.member[:, place]].sort_values("gain", ascending=False)
    value = mine[f"params_{parameter.name}"].iloc[: max(1, len(mine) // 2)]
    distribution = parameter.distribution
    if isinstance(distribution, FloatDistribution) and distribution.step is None:
        return float(value.median())
    if isinstance(distribution, IntDistribution) and value.nunique() > EXACT:
        return int(value.iloc[0])
    return value.iloc[0]


def _improvements(
    history: History, scores: pd.DataFrame, importance: pd.DataFrame, base: Mapping[str, Any]
) -> list[Suggestion]:
    kept, found = history.feasible, list[Suggestion]()
    best = int(kept["gain"].to_numpy(dtype=float).argmax())
    for name in importance["parameter"]:
        own = scores[scores["parameter"] == name]
        if name not in base or not len(own):
            continue
        lead, parameter = own.iloc[0], history.parameters[name]
        now = levels(parameter, kept[f"params_{name}"])
        has = [label for label, mine in zip(now.labels, now.member[best], strict=True) if mine]
        if lead["low"] <= 1 or lead["confidence"] == "low" or lead["value"] in has:
            continue
        value = _example(parameter, kept, lead["value"])
        reason = (
            f"{lead['good_count']} of {lead['count']} trials with {name} {short(lead['value'])} are good: score "
            f"{lead['score']:.2g} [{lead['low']:.2g}, {lead['high']:.2g}]; the best trial has {short(said(base[name]))}"
        )
        found.append(Suggestion("improve", {name: value}, reason, {**base, name: value}))
    return found


def _between(
    history: History, likely: pd.DataFrame, base: Mapping[str, Any], searched: Mapping[str, Parameter]
) -> list[Suggestion]:
    """Halfway between the luckiest and the likely best trial in what is continuous, the likely best's in all else."""
    if not len(likely) or likely.iloc[0]["rank"] == 1:
        return []
    top = likely.iloc[0]
    kept = history.feasible
    mine = kept["number"] == top["number"]
    of_which = f" of {top['study']}" if "study" in top else ""
    row = kept[mine & (kept["study"] == top["study"]) if of_which else mine].iloc[0]
    params = dict(base)
    for name, parameter in searched.items():
        other = row[f"params_{name}"]
        if pd.isna(other):
            continue
        params[name] = other
        distribution = parameter.distribution
        if isinstance(distribution, FloatDistribution) and distribution.step is None and name in base:
            log = distribution.log
            params[name] = float(np.sqrt(other * base[name]) if log else (other + base[name]) / 2)
    change = {name: value for name, value in params.items() if base.get(name) != value}
    reason = (
        f"trial {int(top['number'])}{of_which} is the likely best ({top['likely']:.4g} after shrinking, "
        f"{top['value']:.4g} measured); the trial with the best measured value was partly lucky"
    )
    return [Suggestion("likely", change, reason, params)]


def _unexplored(history: History, base: Mapping[str, Any]) -> list[Suggestion]:
    kept, found = history.feasible, list[Suggestion]()
    for name, value in base.items():
        distribution = history.parameters[name].distribution
        if not isinstance(distribution, CategoricalDistribution):
            continue
        for choice in map(there, distribution.choices):
            tried = int((kept[f"params_{name}"] == choice).sum())
            if tried < 3 and choice != value:
                times = {0: "never", 1: "once", 2: "twice"}[tried]
                label = short(said(choice))
                reason = f"{name} {label} was tried {times} in a feasible trial, so nothing is known of it"
                found.append(Suggestion("explore", {name: choice}, reason, {**base, name: choice}))
    return found
