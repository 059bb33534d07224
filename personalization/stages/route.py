"""Several chains: one of them for each question, or the mean of what all of them answer.

It stands alone and holds whole chains, each fitted on the tune users as it would be alone. `one`: by what is known of
the question's user before any answer (`methods.history.routing`); only the chain that is chosen runs. `mean`:

    log p(y) = log (1/A) sum_a p_a(y)

the linear pool of the chains' probabilities, all with one weight (Stone 1961; weights from few questions do worse than
equal ones, Clemen 1989). Cost: that of the chains together to fit, and of one of them, or of all, to answer.
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
    """The chains, and who is sent to which, the first by default; None where all answer."""

    arms: tuple[Fitted, ...]
    router: Router | None


class Route(Stage):
    """One of several chains for each question, or the mean of all."""

    alone = True
    earlier: Mapping[str, Any] = {"answer": "one"}

    def learn(self, params: Any, work: Work, tools: Tools) -> Learned | None:
        """Every chain, and from the tune users' answers, held out where that is to be had, who is better off where."""
        if not params.arms:
            return None
        arms = tuple(chain.fit(own, work, tools) for own in params.chains)
        if params.answer == "mean":
            return Learned(arms, None)
        return Learned(arms, routing.learned(features(work.dataset), _hits(arms, work.dataset), params.penalty))

    def act(self, params: Any, learned: Learned | None, work: Work, tools: Tools) -> Work:  # noqa: ARG002
        """The answers of the chains that the questions are sent to, or the mean of all."""
        if learned is None:
            return work
        if learned.router is None:
            return replace(work, answer=_mean([chain.answer(arm, work, tools).answer for arm in learned.arms]))
        parts = []
        for number, rows in _sent(learned.router.arms(features(work.dataset))):
            name = None if work.of is None else (work.of, "sent", tuple(rows.tolist()))
            part = work if len(rows) == len(work) else work.only(rows, name)
            found = chain.answer(learned.arms[number], part, tools).answer
            assert found is not None
            parts.append((rows, found))
        return replace(work, answer=gathered(len(work), len(work.spoken), parts))

    def held_out(self, params: Any, learned: Learned | None, work: Work, tools: Tools) -> Work:  # noqa: ARG002
        """The tune users, sent by what was learned from others; of all chains what they hold out."""
        if learned is None:
            return work
        if learned.router is None:
            return replace(work, answer=_mean([arm.answers for arm in learned.arms]))
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
        if learned is None or learned.router is None:
            return {}
        chosen = learned.router.arms(features(work.dataset))
        return {question.user_id: int(arm) for question, arm in zip(work.dataset.questions, chosen, strict=True)}

    def training_s(self, learned: Learned | None) -> float:
        """Of all arms."""
        return sum(map(chain.training_s, learned.arms)) if learned else 0.0

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
        """Who is sent where, and what each chain remarks."""
        if learned is None:
            return Facts()
        remarks = [
            f"chain {number}: {line}"
            for number, arm in enumerate(learned.arms)
            for line in chain.facts(arm, tools).remarks
        ]
        if learned.router is None:
            names = "; ".join(" + ".join(arm.chain) for arm in learned.arms)
            return Facts(remarks=[f"the mean of {len(learned.arms)} chains: {names}", *remarks])
        chosen = learned.router.arms(features(below.dataset))
        share = np.bincount(chosen, minlength=len(learned.arms)) / max(1, len(below))
        said = [
            f"{100 * part:.0f} % by chain {number} ({' + '.join(arm.chain)})"
            for number, (part, arm) in enumerate(zip(share, learned.arms, strict=True))
        ]
        remark = f"of the tune questions are answered: {', '.join(said)}"
        return Facts(metrics={"sent_elsewhere": float(1 - share[0])}, remarks=[remark, *remarks])

    def export(self, params: Any, learned: Learned | None, work: Work, tools: Tools, folder: Path) -> Sequence[str]:  # noqa: ARG002
        """Of each chain in a folder of its own."""
        arms = () if learned is None else learned.arms
        return [
            f"{_folder(number)}: {line}"
            for number, arm in enumerate(arms)
            for line in chain.export(arm, work, tools, folder / _folder(number))
        ]

    def save(self, params: Any, learned: Learned | None, folder: Path) -> Mapping[str, Any]:  # noqa: ARG002
        """Each chain in a folder of its own, and the router where there is one."""
        if learned is None:
            return {}
        listed = []
        for number, arm in enumerate(learned.arms):
            place = folder / _folder(number)
            place.mkdir(parents=True)
            listed.append(chain.save(arm, place))
        if learned.router is not None:
            write_arrays(folder / ROUTER, learned.router._asdict())
        return {"arms": listed}

    def load(self, params: Any, listed: Mapping[str, Any], folder: Path) -> Learned | None:
        """What `save` wrote."""
        if not listed:
            return None
        from safetensors.numpy import load_file

        arms = tuple(chain.load(arm, folder / _folder(number)) for number, arm in enumerate(listed["arms"]))
        return Learned(arms, Router(**load_file(folder / ROUTER)) if params.answer == "one" else None)


def _folder(number: int) -> str:
    """Of a chain's files."""
    return f"arm-{number}"


def _mean(answers: Sequence[Calibrated | None]) -> Calibrated:
    """The mean of probabilities [n, K]; the prior modes are the first chain's."""
    found = [answer for answer in answers if answer is not None]
    pooled = np.logaddexp.reduce([answer.log_probs for answer in found], axis=0) - np.log(len(found))
    return Calibrated(pooled, found[0].prior_modes)


def _hits(arms: Sequence[Fitted], dataset: Dataset) -> Any:
    """Which chain answers which tune question right, bool [A, n]."""
    gold = gold_indices(dataset)
    return np.stack([arm.answers.log_probs.argmax(axis=1) == gold for arm in arms])


def _sent(chosen: Rows) -> list[tuple[int, Rows]]:
    """(the number of a chain, the rows of the questions that are sent to it)."""
    return [(int(number), np.flatnonzero(chosen == number)) for number in np.unique(chosen)]
