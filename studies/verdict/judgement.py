"""The gates of a promotion: pure functions of the evidence and of the terms that hold now.

All must hold: feasible on confirm; better than the baseline, and than the deployed config where there is one, in the
first goal, with p below the granted level and by no less than the stated minimum; no further goal worse by more than
its margin; no reference without a model that does better; and where it is asked for, a personal part of the gain above
0 by question, with p below the same level. All gates must hold, so one more of them spends no level.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from studies.constraints import Constraint
from studies.spec import PromotionSpec
from studies.verdict.selection import worse_than


class Judgement(NamedTuple):
    """The verdict, and the first gate that decided it."""

    promoted: bool
    reason: str


def judge(
    found: Mapping[str, Any], constraints: list[Constraint], terms: PromotionSpec, metrics: list[str], level: float
) -> Judgement:
    """Apply the gates to what a look found; `metrics`: the goals, the deciding one first; `level`: the granted one."""
    opponents = {"baseline": found["tests"]}
    if found["incumbent"] is not None:
        opponents["deployed config"] = found["incumbent"]
    refused = next(_refusals(found, opponents, constraints, terms, metrics, level), None)
    if refused is not None:
        return Judgement(False, refused)
    test = found["tests"][metrics[0]]
    return Judgement(True, f"{metrics[0]} better by {test['delta']:+.3f}, {_p(test)} < {level:.2g}")


def _refusals(
    found: Mapping[str, Any],
    opponents: Mapping[str, Mapping[str, Any]],
    constraints: list[Constraint],
    terms: PromotionSpec,
    metrics: list[str],
    level: float,
) -> Iterator[str]:
    measured = found["metrics"]
    broken = [f"{c.metric} {measured[c.metric]:.3f}" for c in constraints if c.violation(measured[c.metric]) > 0]
    if broken:
        yield f"not feasible on the confirm users: {', '.join(broken)}"
    first, *further = metrics
    for name, tests in opponents.items():
        test = tests[first]
        if not (test["delta"] > 0 and test["p_value"] < level):
            yield f"{first} not better than the {name}'s: {test['delta']:+.3f}, {_p(test)}, needed p < {level:.2g}"
        if test["delta"] < terms.min_gain:
            yield f"gain in {first} over the {name} of {test['delta']:+.3f} is below the minimum {terms.min_gain}"
        for metric in further:
            if worse_than(tests[metric], terms.margins.get(metric), terms.alpha):
                yield _worse(metric, name, tests[metric], terms.margins.get(metric))
    for name, beside in found["references"].items() if terms.beat_references else ():
        test = beside["tests"].get(first)
        if test is not None and test["delta"] < 0:
            yield (
                f"{name} (no model) does better: {first} {test['before']:.3f}, and {test['after']:.3f} with the model; "
                "promotion.beat_references: false lets it pass"
            )
    if terms.personal:
        yield from _not_personal(found.get("parts"), level)


def _not_personal(parts: Mapping[str, Any] | None, level: float) -> Iterator[str]:
    """Why a gain is not shown to be personal; `parts`: None of looks of earlier versions."""
    if parts is None:
        yield "promotion.personal: histories were not exchanged at this look, by an earlier version; run more trials"
    elif parts["why_not"] is not None:
        yield f"promotion.personal: {parts['why_not']}"
    else:
        test = parts["by_question"]["personal"]
        if not (test["delta"] > 0 and test["p_value"] < level):
            yield (
                f"the gain in {parts['metric']} is not shown to be personal: {test['delta']:+.3f} more than with "
                f"another user's history, {_p(test)}, needed p < {level:.2g}; promotion.personal: false lets it pass"
            )


def _worse(metric: str, name: str, test: Mapping[str, Any], margin: float | None) -> str:
    if margin is None:
        return (
            f"{metric} is worse than the {name}'s by {-test['delta']:.3f}, {_p(test)}; "
            f"promotion.margins.{metric} states how much may be lost"
        )
    return (
        f"{metric} may be worse than the {name}'s by more than the margin {margin}: the interval of its gain "
        f"is {test['interval'][0]:+.3f} to {test['interval'][1]:+.3f}"
    )


def _p(test: Mapping[str, Any]) -> str:
    return f"p = {test['p_value']:.2g}" if test["p_value"] < 0.0001 else f"p = {test['p_value']:.4f}"
