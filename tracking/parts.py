"""What a gain consists of: what another user's history would have given, too, and what the user's own adds to it.

    gain      the candidate over the baseline, each question with its own user's history
    general   the same, each question with the history of another user (`personalization.data.exchange`)
    personal  gain - general

By question every question counts the same; by user every user does: the mean over users of their means. Gains are
resampled and flipped by user. The parts are by ring: the two or three users who exchanged histories together, since one
history answers for both. Where it does not matter whose history a question gets, a pair that exchanges back turns the
sign of both at once, so that the flip by pair keeps its level exactly. Cost: one more pass for each system.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from personalization.evaluation import MEANS, Evaluation
from tracking.significance import draws_for, sign_flip, user_interval, user_totals

WEIGHTS = {"by_question": "every question counting the same", "by_user": "every user counting the same"}

Pair = tuple[Evaluation, Evaluation]
"""(before, after) on the same questions."""


def mean_for(metric: str) -> str:
    """The metric itself where it is a mean over questions, and so has parts; else accuracy."""
    return metric if metric in MEANS else "accuracy"


def parts_of_gain(
    own: Pair, exchanged: Pair | None, rings: Mapping[str, int], metric: str, level: float = 0.05
) -> dict[str, Any]:
    """JSON-able: `metric`, and for each of `WEIGHTS` the parts with delta, interval and p_value.

    `exchanged`: the answers with the histories of other users, None where there is nobody to exchange with: the gain
    then has no parts. `rings`: user -> number of those who exchanged with each other.
    """
    users = own[1].users[0]
    found: dict[str, dict[str, Any]] = {weight: {} for weight in WEIGHTS}
    differences = {"gain": _differences(own, metric)}
    units = {"gain": np.arange(len(users))}
    if exchanged is not None:
        general = _differences(exchanged, metric)
        differences |= {"general": general, "personal": differences["gain"] - general}
        units |= dict.fromkeys(("general", "personal"), np.array([rings[user] for user in users]))
    for part, values in differences.items():
        sums, sizes = user_totals(own[1], values)
        found["by_question"][part] = _effect(sums, sizes, units[part], level)
        found["by_user"][part] = _effect(sums / sizes, np.ones(len(users)), units[part], level)
    return {"metric": metric, **found}


def _differences(pair: Pair, metric: str) -> NDArray[np.float64]:
    """How much better the second system is at each question, [n]."""
    before, after = pair
    return np.asarray(after.question_scores(metric) - before.question_scores(metric))


def _effect(
    user_sums: NDArray[np.float64], user_sizes: NDArray[np.number[Any]], units: NDArray[np.int64], level: float
) -> dict[str, Any]:
    """Sum over sum of users' [U] values and sizes, with its interval and test over the units that they are in [U]."""
    sums, sizes = (np.bincount(units, weights=values) for values in (user_sums, user_sizes))
    return {
        "delta": float(sums.sum() / sizes.sum()),
        "interval": list(user_interval(sums, sizes)),
        "p_value": sign_flip(sums, draws_for(level)),
    }


def flat(parts: Mapping[str, Any]) -> dict[str, float]:
    """name -> number, for a tracker."""
    return {
        f"{part}_{weight}{suffix}": test[value]
        for weight in WEIGHTS
        for part, test in parts[weight].items()
        for suffix, value in (("", "delta"), ("_p", "p_value"))
    }


def sentences(parts: Mapping[str, Any]) -> list[str]:
    """The same in plain words, a line for each weight."""
    return [
        f"{parts['metric']}, {meaning}: " + ", ".join(_said(part, test) for part, test in parts[weight].items())
        for weight, meaning in WEIGHTS.items()
    ]


def _said(part: str, test: Mapping[str, Any]) -> str:
    p_value = f", p = {test['p_value']:.4f}" if part == "personal" else ""
    return f"{part} {gain_said(test['delta'], test['interval'])}{p_value}"


def gain_said(delta: float, interval: Sequence[float]) -> str:
    """A difference with its interval."""
    low, high = interval
    return f"{delta:+.3f} [{low:+.3f}, {high:+.3f}]"


def parts_table(parts: Mapping[str, Any], note: str) -> str:
    """The same as Markdown."""
    head = " | ".join(f"{weight.replace('_', ' ')} | 95 % | p" for weight in WEIGHTS)
    lines = [f"# Is the gain personal?\n\n{note}\n", f"| {parts['metric']} | {head} |", "|---|" + "---:|" * 6]
    for part in parts["by_question"]:
        cells = []
        for weight in WEIGHTS:
            test = parts[weight][part]
            low, high = test["interval"]
            cells += [f"{test['delta']:+.4f}", f"{low:+.4f} to {high:+.4f}", f"{test['p_value']:.4f}"]
        lines.append(f"| {part} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", _exchange_said(parts)]) + "\n"


def _exchange_said(parts: Mapping[str, Any]) -> str:
    """How histories were exchanged, or why not."""
    if parts["why_not"] is not None:
        return f"The gain has no parts: {parts['why_not']}."
    return (
        "General: the gain where every question gets the history of another user (longer or shorter than its own by "
        f"{parts['off_by']:g} items, the median). Personal: what the users' own histories add to that."
    )


def cost_said(cost: Mapping[str, Any]) -> str:
    """What a system costs, in one line; `baseline_ms`: beside the baseline's."""
    baseline = f" (the baseline {cost['baseline_ms']:.1f})" if "baseline_ms" in cost else ""
    trained = "" if cost["training_s"] is None else f", trained in {cost['training_s']:.1f} s"
    return f"cost: {cost['cost_ms']:.1f} ms a question{baseline}, {cost['user_bytes']} bytes a user{trained}"
