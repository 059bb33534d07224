"""What the confirm users of a study can show, said before the study spends time on trials."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from studies.evidence import Evidence
from studies.study import OpenStudy
from tracking.detection import design_effect, detectable_difference, intraclass, smallest_p


class Prospect(NamedTuple):
    """Confirm users and questions, the level of the next look at them, and what it detects with a power of 80 %.

    `questions_worth`: questions of different users that tell as much; `detectable`: in accuracy, where 20 % of the
    answers change; None where no difference is large enough. `chosen_by`: part -> study -> how many of these users it
    tuned, or selected, on.
    """

    users: int
    questions: int
    questions_worth: float
    level: float
    detectable: float | None
    chosen_by: dict[str, dict[str, int]]

    @property
    def hopeless(self) -> bool:
        """Whether not even users who all gain could pass."""
        return self.level <= 0 or smallest_p(self.users) >= self.level


def prospect(opened: OpenStudy) -> Prospect:
    """What a look at the confirm users could show.

    How alike the questions of one user are is known from the baseline on the tune users.
    """
    confirm = opened.splits.confirm
    evidence = Evidence(opened.storage)
    names: dict[str, int] = {}
    owners = np.array([names.setdefault(q.user_id, len(names)) for q in confirm.questions])
    alike = intraclass(opened.baseline.correct.astype(np.int64), opened.baseline.users[1])
    worth = len(confirm) / design_effect(alike, owners)
    level = evidence.next_level(confirm, opened.spec.promotion.alpha)
    reachable = level > 0 and smallest_p(len(names)) < level
    detectable = detectable_difference(worth, alpha=level) if reachable else None
    return Prospect(len(names), len(confirm), worth, level, detectable, evidence.chosen_by(confirm))
