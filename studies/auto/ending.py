"""The end of a race: the leader is promoted, described and sent to MLflow, in the time that is left.

The verdict comes first. By how much is known of a user it is described where the passes for that fit into half of what
is left then; `chamtune promote` does it later. The rest of the time sends the trials.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

import numpy as np

from personalization.errors import ChamtuneError
from studies.auto.clock import TimeUp, ended_after
from studies.storage import whereabouts
from studies.study import OpenStudy
from studies.verdict.coldstart import COUNTS
from studies.verdict.cost import TIMED, TIMES
from studies.verdict.deployments import track
from studies.verdict.promotion import promote, refits
from tracking.spool import OFF

if TYPE_CHECKING:
    from studies.auto.arms import Arm
    from studies.auto.judging import Entry
    from studies.auto.race import Race

NO_GAIN = "no arm does better than the model itself on users that it did not learn from"
NONE_MEASURED = "no arm could be measured; what became of each is told with it"
MARGIN_S, SPARE = 10.0, 1.3
"""What a promotion takes besides passes, and how much more than estimated is kept for it."""
OVER = 1.08
"""Share of the minutes at which a promotion is interrupted."""
DESCRIBED = 0.5
"""Share of the time left that describing a promotion may take."""


def unpromoted(best: Entry | None) -> str:
    """Why nothing was tried on confirm users."""
    return NONE_MEASURED if best is None or best.standing is None else NO_GAIN


def promote_leader(race: Race, out: Path) -> dict[str, Any] | None:
    """What promotion said of the leader, also where it came to no end; None where no arm beats the baseline."""
    best = race.best()
    if best is None or best.standing is None or np.nansum(best.standing.gains) <= 0:
        race.say(unpromoted(best))
        return None
    race.say(f"promoting {best.arm.name}, trial {best.trial}")
    told = best.opened.spec
    quiet = replace(best.opened, spec=told.model_copy(update={"tracking": OFF}))
    try:
        with ended_after(max(1.0, _left_s(race))):
            result = promote(quiet, out, with_cold_start=False)
        if result["promoted"]:
            result |= {"cold_start": _cold_start(race, best, quiet, out)}
        if result["promoted"] and told.tracking != OFF:
            with suppress(TimeUp), ended_after(_left_s(race)):
                track(best.opened, out, result, result["generation"])
        return result
    except TimeUp:
        command = f"chamtune promote {told.name} --out {quote(str(out))}{whereabouts(race.home, told.storage)}"
        return _without_end(race, f"the time was over before the promotion of {told.name} was; `{command}` ends it")
    except ChamtuneError as error:
        return _without_end(race, str(error))
    finally:
        race.journal.note()


def _without_end(race: Race, why: str) -> dict[str, Any]:
    race.say(why)
    return {"promoted": False, "reason": why, "confirm": None}


def promoting_s(race: Race, arm: Arm | None = None) -> float:
    """Seconds that the promotion of the present leader, or of this arm, will take: what it learns anew, a pass over the
    confirm users, and with what it adds once with their own and once with exchanged histories. Items that have been
    run are not run again: those of tune users, of select users where answering reads them, and of confirm users after
    the first time."""
    if race.scene is None:
        return MARGIN_S
    scene, best = race.scene, race.best()
    confirm, select = (len(race.base.splits.part(part)) / max(1, scene.questions) for part in ("confirm", "select"))
    leads = arm or best
    first, kept, passes = (
        (0.0, 0.0, 0.0) if leads is None else (leads.passes(scene), leads.again(scene), leads.answering(scene))
    )
    refit = arm is not None or (best is not None and best.params is not None and refits(best.opened, best.params))
    timed = 2 * TIMED * TIMES / max(1, scene.questions) * (1 + passes)
    anew = (1 + select) * first - min(kept, first) - select * min(kept, passes, first) if refit else 0.0
    return MARGIN_S + SPARE * scene.pass_s * (anew + confirm * (1 + 2 * passes - min(kept, passes)) + timed)


def describing_s(race: Race, best: Entry) -> float:
    """Seconds that answering the confirm users with fewer items will take, as many times as there are counts."""
    assert race.scene is not None
    share = len(race.base.splits.confirm) / max(1, race.scene.questions)
    return len(COUNTS) * share * race.scene.pass_s * (1 + best.answering(race.scene))


def _cold_start(race: Race, best: Entry, quiet: OpenStudy, out: Path) -> dict[str, Any] | None:
    """What is promoted by how much is known of a user; None where the time does not hold it."""
    left = DESCRIBED * race.remaining_s
    if describing_s(race, best) > left:
        return None
    with suppress(TimeUp), ended_after(left):
        found: dict[str, Any] = promote(quiet, out)["cold_start"]
        return found
    return None


def _left_s(race: Race) -> float:
    """Seconds until a promotion is interrupted."""
    return OVER * race.limit_s - race.journal.spent_s
