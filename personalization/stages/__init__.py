"""Stages: what can be done for a question, one step after another. A chain of them is tuned, tested and served.

A stage learns from the tune users, as the stages below it leave them; it acts question by question, so that an answer
never depends on what else is asked; it says what it did, and saves and loads what it learned. To add one: a file here
with a class, a file of the same name in `search_spaces`, and a line in `STAGES` (or `register`). The contract tests run
over the table.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from personalization.data.records import Dataset
from personalization.errors import UsageError
from personalization.stages.facts import Facts
from personalization.stages.holdings import Held, May, Sizes
from personalization.stages.work import Tools, Work


class Stage:
    """One step of a chain. What a subclass does not say is that it does nothing.

    Parameters are objects with the fields of the space of the same name. `kinds`: the backbones that the stage takes;
    `trains`: whether `learn` tells `tools.report` of each evaluation, also where it was done before; `learns`: whether
    it learns to answer from the labels of tune users, so that a study gives it more of them; `alone`: whether it is a
    chain by itself; `earlier`: what a parameter was before it was one, for a chain that was saved then.
    """

    kinds: tuple[str, ...] = ("causal", "encoder")
    trains = False
    learns = False
    alone = False
    earlier: Mapping[str, Any] = {}

    def learn(self, params: Any, work: Work, tools: Tools) -> Any:  # noqa: ARG002
        """What the stage takes from the tune users, as the stages below leave them; no label where it can help it."""
        return None

    def act(self, params: Any, learned: Any, work: Work, tools: Tools) -> Work:  # noqa: ARG002
        """The work with this step done."""
        return work

    def held_out(self, params: Any, learned: Any, work: Work, tools: Tools) -> Work:
        """The same for the tune users themselves, by what did not learn from them where that is to be had."""
        return self.act(params, learned, work, tools)

    def extend(self, params: Any, learned: Any, work: Work, everybody: Dataset, tools: Tools) -> Any:  # noqa: ARG002
        """What was learned, with what belongs to each of these users alone; no question's label is read."""
        return learned

    def learned_labels(self, params: Any) -> bool:  # noqa: ARG002
        """Whether answers on tune users come from what has learned these users' own labels."""
        return False

    def solved(self, params: Any, work: Work, tools: Tools) -> Any:  # noqa: ARG002
        """The parameters with those that have an exact optimum of accuracy on these questions at it."""
        return params

    def groups(self, params: Any, learned: Any, work: Work, tools: Tools) -> Mapping[str, int]:  # noqa: ARG002
        """user -> group, for a stage that puts users into groups; `work` is that before it."""
        return {}

    def training_s(self, learned: Any) -> float:  # noqa: ARG002
        """Seconds that learning took where it was done, of what is trained once and read by others."""
        return 0.0

    def user_bytes(self, params: Any, learned: Any) -> int:  # noqa: ARG002
        """What a deployment holds for each user alone, on the mean."""
        return 0

    def holds(self, may: May, sizes: Sizes) -> Held:  # noqa: ARG002
        """What a study with this stage holds at most, by what its parameters may be."""
        return Held()

    def facts(self, params: Any, learned: Any, below: Work, done: Work, tools: Tools) -> Facts:  # noqa: ARG002
        """What the stage did on the tune users: `below` is the work before it, `done` after it."""
        return Facts()

    def course(self, params: Any, tools: Tools) -> Facts:  # noqa: ARG002
        """What can be said of a trial that was ended while the stage learned."""
        return Facts()

    def starts(self, params: Any, work: Work, tools: Tools) -> Sequence[Mapping[str, Any]]:  # noqa: ARG002
        """Points of the stage's own space that are worth trying first, with what else they need by full name."""
        return []

    def export(self, params: Any, learned: Any, work: Work, tools: Tools, folder: Path) -> Sequence[str]:  # noqa: ARG002
        """Write what other tools read of the stage for a work's users into a folder; a line for each thing written."""
        return ()

    def save(self, params: Any, learned: Any, folder: Path) -> Mapping[str, Any]:  # noqa: ARG002
        """Write what was learned; what is to be read beside it, JSON-able."""
        return {}

    def load(self, params: Any, listed: Mapping[str, Any], folder: Path) -> Any:  # noqa: ARG002
        """What `save` wrote."""
        return None


STAGES: dict[str, str | Stage] = {
    "route": "personalization.stages.route:Route",
    "prompt": "personalization.stages.prompt:Prompt",
    "adapter": "personalization.stages.adapter:Adapter",
    "steering": "personalization.stages.steering:Steering",
    "head": "personalization.stages.head:HeadOfItems",
    "calibration": "personalization.stages.calibration:Calibration",
}
"""name -> "module:class", or a stage; in the order in which stages stand in a chain."""


def stage(name: str) -> Stage:
    """A stage by name."""
    found = STAGES[name]
    if isinstance(found, str):
        module, _, attribute = found.partition(":")
        found = STAGES[name] = getattr(import_module(module), attribute)()
    assert isinstance(found, Stage)
    return found


def register(name: str, new: Stage, before: str = "calibration") -> None:
    """Put a stage into the table, to stand before another in a chain."""
    names = [known for known in STAGES if known != name]
    entries = {known: STAGES[known] for known in names}
    STAGES.clear()
    for known, entry in entries.items():
        if known == before:
            STAGES[name] = new
        STAGES[known] = entry


def ordered(names: Sequence[str]) -> tuple[str, ...]:
    """A chain of these names; UsageError where one is unknown, comes twice or stands too early."""
    unknown = [name for name in names if name not in STAGES]
    if unknown:
        raise UsageError(f"chain: no stage {unknown[0]!r}; there are {', '.join(STAGES)}")
    right = [name for name in STAGES if name in names]
    if list(names) != right:
        raise UsageError(f"chain: its order is {', '.join(right)}, each once, but it is {', '.join(names)}")
    lone = next((name for name in names if stage(name).alone), None)
    if lone is not None and len(names) > 1:
        raise UsageError(f"chain: {lone} holds whole chains and stands alone; leave it out, or the others")
    return tuple(names)
