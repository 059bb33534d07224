"""Is a gain personal? Two systems are asked once more, each question with the history of another user."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from personalization.data.exchange import Exchange
from personalization.evaluation import Evaluation
from search_spaces import ChainParams
from studies.study import OpenStudy
from tracking.parts import mean_for, parts_of_gain

ALONE = "there is one user, who has nobody to exchange histories with"


class Answers(NamedTuple):
    """What a system answers with its users' own histories, and with those of others where these were exchanged."""

    own: Evaluation
    exchanged: Evaluation | None


def answers_of(opened: OpenStudy, params: ChainParams, part: str, found: Exchange | None) -> Answers:
    """The answers to a part's questions, with the users' own histories and with exchanged ones."""
    own = opened.objective.evaluate(params, part)
    if found is None:
        return Answers(own, None)
    return Answers(own, opened.objective.evaluate_with(params, part, found.dataset, "exchanged"))


def parts(before: Answers, after: Answers, found: Exchange | None, metric: str, level: float = 0.05) -> dict[str, Any]:
    """`parts_of_gain` in a metric, or in accuracy where it is no mean; how histories were exchanged, or why not."""
    exchanged = None
    if before.exchanged is not None and after.exchanged is not None:
        exchanged = before.exchanged, after.exchanged
    rings: Mapping[str, int] = {} if found is None else found.rings
    return {
        **parts_of_gain((before.own, after.own), exchanged, rings, mean_for(metric), level),
        "users": len(after.own.users[0]),
        "off_by": None if found is None else found.off_by,
        "why_not": ALONE if found is None else None,
    }
