"""Users to different arms: what that would bring, estimated from the arms' standings, and the arm that does it.

For every arm beside the best one, the difference of a user's gains is regressed on what is known of the user before any
answer (`methods.history.routing.features`), by ridge: the larger the penalty, which is chosen by cross-validation, the
nearer the prediction is to the mean difference, and so all users to the best arm. A user is answered by the arm of the
largest predicted difference above 0, as predicted from the other folds of users. Which arm is the best is told by the
other folds, too: an arm that was chosen on a user is too good there, and whatever takes its place would seem to lose.
So the gain is of users that the rule did not learn from. Its interval is Student's, over the users who are sent
elsewhere (all others change nothing), and wider by sqrt(1 + K / (K - 1)), since rules of K folds learn from one
another's users (Nadeau and Bengio 2003).

Where that interval lies above 0 the race ends with one more arm, whose chain is a `route` between the best arm and
those whose users gain most by them; it leads only if its own answers, cross-fitted by the stage, gain over the best arm
by an interval of that width.

The rule of picking for each user whichever arm did better on the same questions is `oracle` in the table: it looks at
the answers, promises a gain where there is none, and cannot be had.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import sqrt
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import scipy
from numpy.typing import NDArray
from sklearn.linear_model import RidgeCV

from personalization.data.records import Dataset
from personalization.methods.history import routing
from search_spaces.route import arms_of
from studies.auto.allocation import leader
from studies.auto.arms import Arm
from studies.auto.judging import Entry, judged
from studies.study import find_study, stored_spec, study_names
from tracking.parts import gain_said
from tracking.significance import difference

if TYPE_CHECKING:
    from studies.auto.race import Race
    from studies.runner import StopRequest

FOLDS = 5
CORRELATED = sqrt(1 + FOLDS / (FOLDS - 1))
"""How much wider an interval over folds is than one over users that no rule learned from."""
PENALTIES = np.logspace(0, 4, 9)
NAME = "route"
RESERVED = 2.6
"""Times of its first trial that are kept: only half of what is left is begun on, and an estimate may be short."""
BESIDE = 2
"""Arms beside the best one between which users are routed."""


class Routed(NamedTuple):
    """What routing would gain a question over one arm for all, and the share of users that it sends elsewhere."""

    gain: float
    interval: tuple[float, float]
    moved: float


def features(dataset: Dataset, rows: NDArray[np.int64]) -> NDArray[np.float64]:
    """Of each judge [U, F]: those of the judge's questions, in the mean, standardised. `rows` [n]: the question's."""
    told, counts = routing.features(dataset), np.bincount(rows)
    means = np.column_stack([np.bincount(rows, column) / counts for column in told.T])
    spread = means.std(axis=0)
    return np.asarray((means - means.mean(axis=0)) / np.where(spread > 0, spread, 1.0))


def routed(
    gains: NDArray[np.float64],
    sizes: NDArray[np.integer],
    told: NDArray[np.float64],
    owners: NDArray[np.int64] | None = None,
) -> Routed:
    """From gains of arms summed by user [A, U] and features [U, F]; of one owner [U], where they are given, no two are
    in different folds."""
    arms, users = gains.shape
    fold = (np.arange(users) if owners is None else owners) % FOLDS
    one, picked, moved = (np.zeros(users) for _ in range(3))
    for number in range(FOLDS):
        learn, ask = fold != number, fold == number
        best = int(gains[:, learn].sum(axis=1).argmax())
        predicted = np.zeros((arms, int(ask.sum())))
        for arm in range(arms):
            if arm != best and ask.any() and learn.sum() > told.shape[1]:
                target = (gains[arm, learn] - gains[best, learn]) / sizes[learn]
                model = RidgeCV(PENALTIES).fit(told[learn], target, sizes[learn])
                predicted[arm] = model.predict(told[ask])
        chosen = np.where(predicted.max(axis=0) > 0, predicted.argmax(axis=0), best)
        one[ask], picked[ask], moved[ask] = gains[best, ask], gains[chosen, np.flatnonzero(ask)], chosen != best
    sent = moved > 0
    share = float(sizes[sent].sum() / sizes.sum())
    gain, error = difference(picked[sent], one[sent], sizes[sent])
    reach = _reach(error, int(sent.sum())) if sent.any() else 0.0
    low, high = max(-1.0, gain - reach), min(1.0, gain + reach)
    return Routed(share * gain, (share * low, share * high), float(moved.mean()))


def _reach(error: float, moved: int) -> float:
    """Half the width of Student's interval over users of whom so many are sent elsewhere."""
    return CORRELATED * float(scipy.stats.t.ppf(0.975, max(1, moved - 1))) * error


def promised(race: Race) -> tuple[Routed, list[Entry]] | None:
    """What routing between the arms would bring, and those that all judges judge, the best first; None where they are
    fewer than two."""
    entries = {
        name: entry
        for name, entry in race.entries.items()
        if entry.arm.chain != (NAME,) and entry.standing is not None and not np.isnan(entry.standing.gains).any()
    }
    if len(entries) < 2:
        return None
    best = entries[leader([e.standing for e in entries.values() if e.standing is not None], race.sizes).name]

    def ahead(entry: Entry) -> float:
        assert entry.standing is not None
        assert best.standing is not None
        return float(np.maximum(entry.standing.gains - best.standing.gains, 0).sum())

    others = sorted((entry for entry in entries.values() if entry is not best), key=ahead, reverse=True)
    gains = np.stack([entry.standing.gains for entry in (best, *others) if entry.standing is not None])
    asked, place = judged(race.base), {one: row for row, one in enumerate(race.judges)}
    dataset = replace(race.base.splits.tune, questions=tuple(question for _, question in asked))
    told = features(dataset, np.array([place[one] for one, _ in asked]))
    owners = np.unique([one.user for one in race.judges], return_inverse=True)[1]
    return routed(gains, race.sizes, told, owners), [best, *others]


def routing_arm(entries: Sequence[Entry]) -> Arm:
    """The arm that sends users to the first of these or to one of the others, all as they were found."""
    arms = entries[: 1 + BESIDE]
    return Arm(
        NAME,
        f"each user to one of {', '.join(entry.arm.name for entry in arms)}, by the history's length and concentration",
        ("route",),
        lambda scene: sum(entry.answering(scene) for entry in arms),
        {
            "route": {
                "arms": arms_of([entry.params for entry in arms if entry.params is not None]),
                "answer": "one",
                "penalty": [10.0, 100.0, 1000.0],
            }
        },
        first=4,
        most=4,
        answers=lambda scene: max(entry.answering(scene) for entry in arms),
        mixes=any(entry.arm.mixes for entry in arms),
    )


def promising(race: Race) -> list[Entry]:
    """The arms between which routing promises more than the best one, that first; none where it does not, or where a
    route is not among the stages that may be used."""
    told = promised(race) if race.may_route else None
    return told[1] if told is not None and told[0].interval[0] > 0 else []


def kept_s(race: Race) -> float:
    """Seconds of a race that are kept for routing, 0 where it is not promising."""
    arms = promising(race)
    if not arms or race.scene is None:
        return 0.0
    return RESERVED * race.scene.pass_s * routing_arm(arms).passes(race.scene)


def holds_up(gains: NDArray[np.float64], best: NDArray[np.float64], sizes: NDArray[np.integer]) -> Routed:
    """What a routing arm's own answers gain over the best arm, by user."""
    moved = gains != best
    if not moved.any():
        return Routed(0.0, (0.0, 0.0), 0.0)
    gain, error = difference(gains, best, sizes)
    reach = _reach(error, int(moved.sum()))
    return Routed(gain, (gain - reach, gain + reach), float(moved.mean()))


def route(race: Race, request: StopRequest) -> None:
    """Where sending users to different arms promises more than the best arm, one more arm that does it. It stands
    beside the others only if its own answers say so, too."""
    arms = held(race, NAME) or promising(race)
    if not arms:
        return
    race.kept_s = 0.0
    entry, best = begun(race, routing_arm(arms), arms[: 1 + BESIDE], request), arms[0].standing
    if entry is None or entry.standing is None or best is None:
        return
    found = holds_up(entry.standing.gains, best.gains, race.sizes)
    if found.interval[0] <= 0:
        entry.standing = None
        race.out(NAME, f"out: {gain_said(found.gain, found.interval)} over {best.name} is not enough")


def held(race: Race, name: str) -> list[Entry]:
    """The arms that one of this name holds, the best first, where it was begun before; none where it was not."""
    names = race.journal.content["arms"].get(name, {}).get("members", [])
    return [race.entries[one] for one in names if one in race.entries]


def begun(race: Race, arm: Arm, members: Sequence[Entry], request: StopRequest) -> Entry | None:
    """An arm that holds other arms, entered; they are as they were when it was begun."""
    kept, study = race.journal.arm(arm.name), race.plan.study_of(arm.name)
    if study not in study_names(race.base.storage):
        kept["arms"], kept["members"] = arm.space["route"]["arms"], [entry.arm.name for entry in members]
    elif not set(kept.get("members", ())) <= set(race.entries):
        race.out(arm.name, "out: it holds an arm that is not raced any more")
        return None
    elif "arms" not in kept:
        kept["arms"] = stored_spec(find_study(study, race.home, race.base.spec.storage)).space["route.arms"]
    race.journal.note()
    race.enter(replace(arm, space={"route": {**arm.space["route"], "arms": kept["arms"]}}), request)
    return race.entries.get(arm.name)
