"""Each question to one of several chains, by what is known of its user before any answer.

See `methods.history.routing`. It stands alone and holds whole chains, each fitted on the tune users as it would be
alone. Only the chain that is chosen for a question runs. Cost: that of the chains together to fit, and of one of them
to answer.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from personalization.data.records import Dataset
from personalization.evaluation import gold_indices
from personalization.files import write_arrays
from personalization.methods.history import routing
from personalization.methods.history.routing import Router, features
from personalization.methods.taste.calibration import Calibrated, gathered
from personalization.stages import Stage, chain, stage
from personalization.stages.chain import Fitted
from personalization.stages.facts import Facts
from personalization.stages.holdings import Held, May, Sizes
from personalization.stages.work import Rows, Tools, Work

ROUTER = "router.safetensors"


class Learned(NamedTuple):
    """The chains, the first of which answers by default, and who is sent to which."""

    arms: tuple[Fitted, ...]
    router: Router


class Route(Stage):
    """One of several chains for each question."""

    alone = True

    def learn(self, params: Any, work: Work, tools: Tools) -> Learned | None:
        """Every chain, and from the tune users' answers, held out where that is to be had, who is better off where."""
        if not params.arms:
            return None
        arms = tuple(chain.fit(own, work, tools) for own in params.chains)
        return Learned(arms, routing.learned(features(work.dataset), _hits(arms, work.dataset), params.penalty))

    def act(self, params: Any, learned: Learned | None, work: Work, tools: Tools) -> Work:  # noqa: ARG002
        """The answers of the chains that the questions are sent to."""
        if learned is None:
            return work
        parts = []
        for number, rows in _sent(learned.router.arms(features(work.dataset))):
            name = None if work.of is None else (work.of, "sent", tuple(rows.tolist()))
            part = work if len(rows) == len(work) else work.only(rows, name)
            found = chain.answer(learned.arms[number], part, tools).answer
            assert found is not None
            parts.append((rows, found))
        return replace(work, answer=gathered(len(work), len(work.spoken), parts))

    def held_out(self, params: Any, learned: Learned | None, work: Work, tools: Tools) -> Work:  # noqa: ARG002
        """The tune users, sent by what was learned from others."""
        if learned is None:
            return work
        told, users = features(work.dataset), [question.user_id for question in work.dataset.questions]
        parts = []
        for number, rows in _sent(routing.held_out(told, _hits(learned.arms, work.dataset), users, params.penalty)):
            found = learned.arms[number].answers
            parts.append((rows, Calibrated(found.log_probs[rows], [found.prior_modes[row] for row in rows])))
        return replace(work, answer=gathered(len(work), len(work.spoken), parts))

    def extend(self, params: Any, learned: Learned | None, work: Work, everybody: Dataset, tools: Tools) -> Any:  # noqa: ARG002
        """Every chain's."""
        if learned is None:
            return None
        return Learned(tuple(chain.extended(arm, everybody, tools) for arm in learned.arms), learned.router)

    def learned_labels(self, params: Any) -> bool:
        """Whether any chain has."""
        return any(stage(name).learned_labels(own) for arm in params.chains for name, own in arm.items())

    def groups(self, params: Any, learned: Learned | None, work: Work, tools: Tools) -> Mapping[str, int]:  # noqa: ARG002
        """user -> the number of the chain that answers the user's latest question."""
        if learned is None:
            return {}
        chosen = learned.router.arms(features(work.dataset))
        return {question.user_id: int(arm) for question, arm in zip(work.dataset.questions, chosen, strict=True)}

    def user_bytes(self, params: Any, learned: Learned | None) -> int:  # noqa: ARG002
        """Of all chains together."""
        return sum(map(chain.user_bytes, learned.arms)) if learned else 0

    def holds(self, may: May, sizes: Sizes) -> Held:
        """The chains together, of the dearest list of them."""
        found = [Held()]
        for text in filter(None, may["arms"]):
            one = Held()
            for arm in json.loads(text):
                given = {name: {key: [value] for key, value in own.items()} for name, own in arm.items()}
                one = one.plus(chain.holds(tuple(arm), given, sizes))
            found.append(one)
        return max(found, key=lambda held: held.memory)

    def facts(self, params: Any, learned: Learned | None, below: Work, done: Work, tools: Tools) -> Facts:  # noqa: ARG002
        """Who is sent where."""
        if learned is None:
            return Facts()
        chosen = learned.router.arms(features(below.dataset))
        share = np.bincount(chosen, minlength=len(learned.arms)) / max(1, len(below))
        said = [
            f"{100 * part:.0f} % by chain {number} ({' + '.join(arm.chain)})"
            for number, (part, arm) in enumerate(zip(share, learned.arms, strict=True))
        ]
        remark = f"of the tune questions are answered: {', '.join(said)}"
        more = [
            f"chain {number}: {line}"
            for number, arm in enumerate(learned.arms)
            for line in chain.facts(arm, tools).remarks
        ]
        return Facts(metrics={"sent_elsewhere": float(1 - share[0])}, remarks=[remark, *more])

    def export(self, params: Any, learned: Learned | None, work: Work, tools: Tools, folder: Path) -> Sequence[str]:  # noqa: ARG002
        """Of each chain in a folder of its own."""
        arms = () if learned is None else learned.arms
        return [
            f"{_folder(number)}: {line}"
            for number, arm in enumerate(arms)
            for line in chain.export(arm, work, tools, folder / _folder(number))
        ]

    def save(self, params: Any, learned: Learned | None, folder: Path) -> Mapping[str, Any]:  # noqa: ARG002
        """Each chain in a folder of its own, and the router."""
        if learned is None:
            return {}
        listed = []
        for number, arm in enumerate(learned.arms):
            place = folder / _folder(number)
            place.mkdir(parents=True)
            listed.append(chain.save(arm, place))
        write_arrays(folder / ROUTER, learned.router._asdict())
        return {"arms": listed}

    def load(self, params: Any, listed: Mapping[str, Any], folder: Path) -> Learned | None:  # noqa: ARG002
        """What `save` wrote."""
        if not listed:
            return None
        from safetensors.numpy import load_file

        arms = tuple(chain.load(arm, folder / _folder(number)) for number, arm in enumerate(listed["arms"]))
        return Learned(arms, Router(**load_file(folder / ROUTER)))


def _folder(number: int) -> str:
    """Of a chain's files."""
    return f"arm-{number}"


def _hits(arms: Sequence[Fitted], dataset: Dataset) -> Any:
    """Which chain answers which tune question right, bool [A, n]."""
    gold = gold_indices(dataset)
    return np.stack([arm.answers.log_probs.argmax(axis=1) == gold for arm in arms])


def _sent(chosen: Rows) -> list[tuple[int, Rows]]:
    """(the number of a chain, the rows of the questions that are sent to it)."""
    return [(int(number), np.flatnonzero(chosen == number)) for number in np.unique(chosen)]
