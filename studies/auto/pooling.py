"""The mean of what several arms answer, as one more arm at the end of a race.

Arms that know different things are wrong on different questions, and of many arms that are measured on the same users
the best one is in part lucky; the mean of a few good ones is less so. What it would bring is told by answers that the
race already has: of the best arm with one or two of the next ones, the set whose mean probability is right most often
(ensemble selection, Caruana et al. 2004, among few so that the choice itself learns little). Only where that is more
often than the best arm is the arm begun, as an ordinary study of a `route` whose answer is the mean, and it leads only
where it is ahead of all arms as any of them would have to be. It costs a pass of every arm that it holds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np

from personalization.evaluation import Evaluation, joined
from search_spaces.route import arms_of
from studies.auto.allocation import leader
from studies.auto.arms import NOT_AFFORDED, Arm, Scene
from studies.auto.clock import spoken_time
from studies.auto.ending import promoting_s
from studies.auto.judging import Entry
from studies.auto.routing import begun, held
from tracking.parts import mean_for

if TYPE_CHECKING:
    from studies.auto.race import Race
    from studies.runner import StopRequest

NAME = "mean"
CANDIDATES, MOST = 4, 3
"""Of so many of the best arms, so many together."""
SPARE, KEPT = 1.5, 0.2
"""How much more than estimated is kept for it, and which share of a race at most; a dearer one gets what is left."""


def gain(arms: Sequence[Mapping[str, Evaluation]], metric: str) -> float:
    """What the mean of answers, part -> answers, has over the first of them, a question, in the parts of all."""
    common = [part for part in arms[0] if all(part in arm for arm in arms)]
    first, *others = (joined([arm[part] for part in common]) for arm in arms)
    pooled = np.logaddexp.reduce([first.log_probs, *(other.log_probs for other in others)], axis=0)
    mean = replace(first, log_probs=pooled - np.log(1 + len(others)))
    return float(np.mean(mean.question_scores(metric) - first.question_scores(metric)))


def promising(race: Race) -> list[Entry]:
    """The arms whose mean does better than the best of them, that one first; none where no mean does, or where a
    route is not among the stages that may be used."""
    if not race.may_route:
        return []
    left = {
        entry.standing.name: entry
        for entry in race.entries.values()
        if entry.standing is not None and entry.arm.chain != ("route",)
    }
    ahead: list[Entry] = []
    while left and len(ahead) < CANDIDATES:
        standings = [entry.standing for entry in left.values() if entry.standing is not None]
        ahead.append(left.pop(leader(standings, race.sizes).name))
    if len(ahead) < 2:
        return []
    metric, best, found = mean_for(next(iter(race.base.spec.optimize))), 0.0, list[Entry]()
    for size in range(1, MOST):
        for others in combinations(ahead[1:], size):
            told = gain([entry.answers for entry in (ahead[0], *others)], metric)
            if told > best:
                best, found = told, [ahead[0], *others]
    return found


def pooling_arm(entries: Sequence[Entry]) -> Arm:
    """The arm that answers the mean of these, all as they were found. What the model makes of texts is kept; with
    states moved, or adapted, it is run again."""
    trained = [entry for entry in entries if "adapter" in entry.arm.chain]
    plain = [entry for entry in entries if "adapter" not in entry.arm.chain]
    steered = [entry for entry in plain if "steering" in entry.arm.chain]

    def more(scene: Scene) -> float:
        return sum(entry.answering(scene) for entry in trained)

    def first(scene: Scene) -> float:
        return more(scene) + sum(max(0.0, entry.answering(scene) - entry.again(scene)) for entry in steered)

    def answers(scene: Scene) -> float:
        costs = [entry.answering(scene) for entry in plain]
        return more(scene) + (max(costs, default=0.0) if scene.kind == "encoder" else sum(costs))

    arms = arms_of([entry.params for entry in entries if entry.params is not None])
    return Arm(
        NAME,
        f"the mean of what {', '.join(entry.arm.name for entry in entries)} answer",
        ("route",),
        first,
        {"route": {"arms": arms, "answer": "mean"}},
        first=1,
        most=1,
        answers=answers,
        mixes=any(entry.arm.mixes for entry in entries),
    )


def kept_s(race: Race) -> float:
    """Seconds of a race that are kept for the mean and for promoting it, 0 where it is not promising, or too dear."""
    arms = promising(race)
    found = SPARE * needed_s(race, pooling_arm(arms)) if arms and race.scene is not None else 0.0
    return found if found <= KEPT * race.limit_s else 0.0


def needed_s(race: Race, arm: Arm) -> float:
    """Seconds that an arm takes to be measured, and more to be promoted than the leader."""
    assert race.scene is not None
    more = promoting_s(race, arm) - promoting_s(race)
    return race.scene.pass_s * arm.passes(race.scene) + max(0.0, more)


def pool(race: Race, request: StopRequest) -> None:
    """Where the mean of arms does better than the best of them, one more arm that answers it, if promoting it fits."""
    arms = held(race, NAME) or promising(race)
    if not arms:
        return
    arm, race.kept_s = pooling_arm(arms), 0.0
    needed, kept = needed_s(race, arm), race.journal.arm(NAME)
    if needed > race.left_s and not kept["slices"]:
        kept["says"] = arm.says
        race.out(
            NAME,
            f"{NOT_AFFORDED}: {arm.says}, and promoting that, takes about {spoken_time(needed)}, and "
            f"{spoken_time(max(0.0, race.left_s))} are left",
        )
        return
    begun(race, arm, arms, request)
