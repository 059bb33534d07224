"""What was seen of confirm users, by whom: kept in the storage of the studies, each line before or after a look.

The lines are finished trials of a study of their own, `chamtune.looks`: Optuna numbers trials without gaps, whichever
process, home or machine adds them, so the order of looks needs no lock, and the lines go where the studies go.

    roles    a study was made: which users it tunes and selects on
    opened   it is about to look at some confirm questions, at a stated alpha
    stated   a look was judged anew, at another alpha
    closed   what the look gave

Looks that share a question share one level. With alpha the smallest that any of them stated, the j-th of them is tested
at alpha_j = alpha * 6 / (pi^2 j^2), and never at more than what the others have left of alpha. The alpha_j add up to
alpha, so however often users are looked at, the chance of ever promoting something useless by them stays below it. A
look that was opened and never closed (the process died) counts, and is finished by asking again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import BaseStorage
from optuna.trial import TrialState

from personalization.data.records import Dataset
from personalization.data.splits import Splits
from personalization.errors import DataError
from studies.names import LOOKS
from tracking.detection import spent_alpha

LINE = "line"
"""Attribute of its trials."""
LEARNING = ("tune", "select")
"""Parts whose users are chosen by."""


@dataclass
class Look:
    """A look at some questions: whose, in which state of its study, at which stated alphas, and what it gave."""

    study_id: str
    state: str
    study: str
    questions: frozenset[str]
    alphas: list[float]
    found: dict[str, Any] | None = None
    before: list[Look] = field(default_factory=list)

    @property
    def use(self) -> int:
        """Which look at any of its questions it is, from 1."""
        return 1 + len(self.before)

    @cached_property
    def level(self) -> float:
        """The largest level that it was granted when it was made."""
        return max(self.granted(alpha, self.before) for alpha in self.alphas)

    def granted(self, alpha: float, others: Sequence[Look]) -> float:
        """The level at a stated alpha, beside others that share a question."""
        total = min([alpha, *(min(other.alphas) for other in others)])
        left = total - sum(other.level for other in others)
        return max(0.0, min(spent_alpha(total, self.use), left))


class Evidence:
    """The lines of one storage."""

    def __init__(self, storage: BaseStorage) -> None:
        self._study = optuna.create_study(storage=storage, study_name=LOOKS, load_if_exists=True)

    def lines(self) -> list[dict[str, Any]]:
        """Every line, oldest first, without trials of a study that earlier versions let be called like this one."""
        found = (trial.user_attrs.get(LINE) for trial in self._study.get_trials(deepcopy=False))
        return [line for line in found if isinstance(line, dict) and "event" in line]

    def _append(self, line: dict[str, Any], value: float | None = None) -> None:
        state = TrialState.PRUNED if value is None else TrialState.COMPLETE
        values = None if value is None else [value] * len(self._study.directions)
        self._study.add_trial(optuna.trial.create_trial(state=state, values=values, user_attrs={LINE: line}))

    def looks(self) -> list[Look]:
        """Every look in order, each with the earlier ones that share a question."""
        found: dict[tuple[str, str], Look] = {}
        for line in self.lines():
            if line["event"] == "roles":
                continue
            key = (line["study_id"], line["state"])
            if line["event"] == "opened" and key not in found:
                questions = frozenset(line["questions"])
                before = [look for look in found.values() if not questions.isdisjoint(look.questions)]
                found[key] = Look(*key, line["study"], questions, [line["alpha"]], None, before)
            elif line["event"] == "stated":
                found[key].alphas.append(line["alpha"])
            elif line["event"] == "closed":
                found[key].found = line["found"]
        return list(found.values())

    def look(self, study_id: str, state: str) -> Look | None:
        """The look of a study in a state, if there was one."""
        return next((look for look in self.looks() if (look.study_id, look.state) == (study_id, state)), None)

    def open(self, study_id: str, state: str, study: str, confirm: Dataset, alpha: float) -> Look:
        """Record that a study is about to look at its confirm users; the same state again is the same look."""
        identity = {"study_id": study_id, "state": state, "study": study}
        if self.look(study_id, state) is None:
            questions = sorted(question_digests(confirm))
            self._append({"event": "opened", **identity, "alpha": alpha, "questions": questions})
        found = self.look(study_id, state)
        assert found is not None
        return found

    def granted(self, look: Look, alpha: float) -> float:
        """The level of a look at an alpha that is stated now; one that was not stated before is recorded."""
        if alpha not in look.alphas:
            line = {"study_id": look.study_id, "state": look.state, "study": look.study, "alpha": alpha}
            self._append({"event": "stated", **line})
            look.alphas.append(alpha)
        others = [
            other
            for other in self.looks()
            if (other.study_id, other.state) != (look.study_id, look.state)
            and not look.questions.isdisjoint(other.questions)
        ]
        return look.granted(alpha, others)

    def next_level(self, confirm: Dataset, alpha: float) -> float:
        """The level that the next look at these users would be granted."""
        questions = question_digests(confirm)
        before = [look for look in self.looks() if not questions.isdisjoint(look.questions)]
        return Look("", "", "", frozenset(questions), [alpha], None, before).level

    def close(self, look: Look, found: dict[str, Any], delta: float) -> None:
        """Record what a look gave."""
        line = {"study_id": look.study_id, "state": look.state, "study": look.study, "found": found}
        self._append({"event": "closed", **line}, delta)

    def note_roles(self, study_id: str, study: str, splits: Splits) -> None:
        """Record on which users a study tunes and selects, once."""
        if not any(line["event"] == "roles" and line["study_id"] == study_id for line in self.lines()):
            users = {part: sorted(user_digests(splits.part(part))) for part in LEARNING}
            self._append({"event": "roles", "study_id": study_id, "study": study, **users})

    def chosen_by(self, confirm: Dataset, study_id: str) -> dict[str, dict[str, int]]:
        """part -> study, another one than this -> how many of these users it tuned, or selected, on."""
        users = user_digests(confirm)
        found: dict[str, dict[str, int]] = {part: {} for part in LEARNING}
        for line in self.lines():
            for part in LEARNING if line["event"] == "roles" and line["study_id"] != study_id else ():
                if shared := len(users.intersection(line[part])):
                    found[part][line["study"]] = shared
        return {part: studies for part, studies in found.items() if studies}

    def take_over(self, home: Path) -> None:
        """Add the looks of the ledger file that earlier versions kept in the home folder."""
        old = home / "ledger.jsonl"
        if not old.exists():
            return
        known = {(look.study_id, look.state) for look in self.looks()}
        for number, text in enumerate(old.read_text(encoding="utf-8").splitlines(), start=1):
            try:
                line = json.loads(text)
            except json.JSONDecodeError:
                raise DataError(
                    f"{old}: record {number}: not JSON; remove the torn line, and count its use by hand"
                ) from None
            if line["event"] == "opened" and ("ledger", line["state"]) not in known:
                self._append({**line, "study_id": "ledger", "alpha": 0.05})
        old.rename(old.with_suffix(".taken-over.jsonl"))


def question_digests(dataset: Dataset) -> set[str]:
    """A short digest of each question: of its user and text."""
    return {_digest(f"{q.user_id}\n{q.text}") for q in dataset.questions}


def user_digests(dataset: Dataset) -> set[str]:
    """A short digest of each user of a task."""
    return {_digest(f"{dataset.task.name}\n{q.user_id}") for q in dataset.questions}


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]
