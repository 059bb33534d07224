"""What the model and the confirm users of a study can show, said before the study spends time on trials."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from studies.study import OpenStudy
from studies.verdict.evidence import Evidence
from tracking.detection import can_show, design_effect, detectable_difference, intraclass

LITTLE_MASS = 0.01
"""A model that gives less to the labels together is not asked as it answers."""


class Prospect(NamedTuple):
    """Confirm users and questions, the level of the next look at them, and what it detects with a power of 80 %.

    `questions_worth`: questions of different users that tell as much; `detectable`: in accuracy, where 20 % of the
    answers change; None where no difference is large enough. `chosen_by`: part -> study -> how many of these users it
    tuned, or selected, on. `label_mass`: mean probability that a causal model gives to the labels together.
    """

    users: int
    questions: int
    questions_worth: float
    level: float
    detectable: float | None
    chosen_by: dict[str, dict[str, int]]
    label_mass: float | None = None

    @property
    def hopeless(self) -> bool:
        """Whether not even users who all gain could pass."""
        return not can_show(self.users, self.level)


def prospect(opened: OpenStudy) -> Prospect:
    """What a look at the confirm users could show.

    How alike the questions of one user are is known from the baseline on the tune users.
    """
    confirm = opened.splits.confirm
    evidence = Evidence(opened.storage)
    names, owners = np.unique([q.user_id for q in confirm.questions], return_inverse=True)
    alike = intraclass(opened.baseline.correct.astype(np.int64), opened.baseline.users[1])
    worth = len(confirm) / design_effect(alike, owners)
    level = evidence.next_level(confirm, opened.spec.promotion.alpha)
    detectable = detectable_difference(worth, alpha=level) if can_show(len(names), level) else None
    mass = opened.objective.label_mass()
    return Prospect(
        len(names), len(confirm), worth, level, detectable, evidence.chosen_by(confirm, opened.record["id"]), mass
    )


def roles_said(chosen_by: dict[str, dict[str, int]], users: int) -> list[str]:
    """What other studies did with confirm users before, a line each."""
    done = {"tune": "tuned on", "select": "selected on"}
    return [
        f"study {study} was {done[part]} {count} of these {users} users: for them this is no fresh evidence"
        for part, studies in chosen_by.items()
        for study, count in studies.items()
    ]


def said(found: Prospect) -> list[str]:
    """What the confirm users can show, in lines."""
    who = f"{found.questions} confirm questions of {found.users} users"
    if found.hopeless:
        first = f"mind: the {who} can confirm no gain, however large (level {found.level:.2g})"
    elif found.detectable is None:
        first = f"mind: the {who} detect no gain in accuracy with 80 % power where 20 % of answers change"
    else:
        first = (
            f"the {who} (worth {found.questions_worth:.0f} of different users) detect a gain in accuracy of "
            f"{found.detectable:.3f} with 80 % power at level {found.level:.2g}, where 20 % of answers change"
        )
    mass = [] if found.label_mass is None else [mass_said(found.label_mass)]
    return [*mass, first, *(f"mind: {line}" for line in roles_said(found.chosen_by, found.users))]


def mass_said(mass: float) -> str:
    """How much of its probability a model gives to the labels, in a line."""
    said = f"the model gives {mass:.2%} of its probability to the labels together"
    if mass >= LITTLE_MASS:
        return said
    return f"mind: {said}: it would say something else; set model.chat, or change the task's prompt or answer"
