"""A logistic head on what the model makes of an item, learned from histories; see `methods.adapters.user_heads`.

It reads the model as the stages below leave it, and its log-probabilities are blended with theirs. The tune users are
answered by heads that did not learn from them. A study that tries several depths reads them all in one pass.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from personalization.methods.adapters.user_heads import HeadPlan, Heads, UserHeads
from personalization.stages import Stage
from personalization.stages.facts import Facts
from personalization.stages.holdings import RECORD, Held, May, Sizes
from personalization.stages.work import KEPT_OF, Own, Tools, Work, embeddings_of, states_of

AT_ONCE = 1e9
"""Bytes of states that may be read in one pass; where several depths are more, each is read by itself."""


class HeadOfItems(Stage):
    """Log-probabilities of a head for all users, for groups, or for each user's history."""

    learns = True

    def learn(self, params: Any, work: Work, tools: Tools) -> Heads | None:
        """Fit on the labelled items of the tune users."""
        return None if params.head == "none" else _heads(params, work, tools).learn(_plan(params))

    def act(self, params: Any, learned: Any, work: Work, tools: Tools) -> Work:
        """The head's own answer beside what stands below."""
        if learned is None or not len(work):
            return work
        return replace(work, own=Own(_heads(params, work, tools).scores(learned), params.blend))

    def held_out(self, params: Any, learned: Any, work: Work, tools: Tools) -> Work:
        """Each tune user's by heads of the others."""
        if learned is None:
            return work
        crossed = tools.once(
            "crossed", (work.key, _plan(params)), lambda: _heads(params, work, tools).crossed(_plan(params))
        )
        return replace(work, own=Own(crossed, params.blend))

    def groups(self, params: Any, learned: Any, work: Work, tools: Tools) -> Mapping[str, int]:
        """At each user's last question."""
        if learned is None or learned.clusters is None:
            return {}
        assigned = _heads(params, work, tools).assigned(learned).tolist()
        return dict(zip((q.user_id for q in work.dataset.questions), assigned, strict=True))

    def facts(self, params: Any, learned: Any, below: Work, done: Work, tools: Tools) -> Facts:  # noqa: ARG002
        """How large the heads are."""
        if learned is None:
            return Facts()
        sizes = [array.size for head in (learned.base, *learned.own) for array in head.arrays().values()]
        return Facts(
            fields={"architecture.head_parameters": int(sum(sizes)), "architecture.heads": 1 + len(learned.own)}
        )

    def starts(self, params: Any, work: Work, tools: Tools) -> list[dict[str, Any]]:  # noqa: ARG002
        """On an encoder: half of the answer, and all of it with a head of all and of each."""
        if tools.scorer.kind != "encoder":
            return []
        prior = {"ranking": "similarity", "prior_mode": "similar", "width": 0.1, "half_life": 30.0}
        exact = {f"calibration.{name}": value for name, value in {**prior, "fit": "exact", "kappa": 5.0}.items()}
        head = {**exact, "head.head": "logistic", "head.blend": 0.5}
        return [head, *({**head, "head.level": level, "head.blend": 1.0} for level in ("unified", "user"))]

    def holds(self, may: May, sizes: Sizes) -> Held:
        """What is made of questions and items at each depth; of every history's items where each user has a head."""
        known = sizes.known if "user" in may["level"] else 0
        asked = sizes.items + known
        table, layers = (sizes.questions + asked) * sizes.width * 4, len(_layers(may["depth"], sizes.depth))
        layers = layers if layers * table <= KEPT_OF["states"] * AT_ONCE else min(layers, sizes.trials)
        kept, together = min(KEPT_OF["heads"], layers * sizes.below), min(layers * table, KEPT_OF["states"] * AT_ONCE)
        memory = (kept + 3) * table + together * (layers > 1) + kept * asked * (RECORD + sizes.prompt)
        return Held(layers * sizes.below * table, memory)

    def save(self, params: Any, learned: Any, folder: Path) -> Mapping[str, Any]:  # noqa: ARG002
        """The heads' arrays."""
        return {} if learned is None else {"head": learned.save(folder)}

    def load(self, params: Any, listed: Mapping[str, Any], folder: Path) -> Any:
        """What was saved."""
        return Heads.load(_plan(params), listed["head"], folder) if listed else None


def _heads(params: Any, work: Work, tools: Tools) -> UserHeads:
    """The heads of a work's questions, on the model as the work leaves it."""
    scorer = tools.scorer
    depth = 1 if scorer.kind == "encoder" else scorer.backbone.depth
    (layer,) = _layers([params.depth], depth)
    layers = _layers(tools.may.get("head", {}).get("depth") or [params.depth], depth)
    if layer not in layers:  # of a deployment that the study did not search
        layers = (layer,)

    def represent(prompts: Sequence[str], owners: NDArray[np.int64] | None) -> NDArray[np.float32]:
        at = replace(work, edits=()) if owners is None else work
        rows = np.zeros(len(prompts), dtype=np.int64) if owners is None else owners
        if scorer.kind == "encoder":
            return embeddings_of(prompts, rows, at, tools)
        if len(layers) == 1 or 4 * len(prompts) * len(layers) * scorer.backbone.width > AT_ONCE:
            return states_of(prompts, rows, at, tools, (layer,))[:, 0]
        key = None if at.key is None or not at.edits else (at.key, tuple(prompts), tuple(rows.tolist()))
        states = tools.once("states", key, lambda: states_of(prompts, rows, at, tools, layers))
        return np.ascontiguousarray(states[:, layers.index(layer)])

    def make() -> UserHeads:
        moved = np.array([edit.touched for edit in work.edits], dtype=np.bool_).reshape(-1, len(work)).T
        return UserHeads(work.dataset, work.asking, scorer, represent, work.prompts, moved)

    made: UserHeads = tools.once("heads", None if work.key is None else (work.key, layer), make)
    return made


def _layers(depths: Sequence[float], depth: int) -> tuple[int, ...]:
    """The layers of these shares of the depth; of two, the ends of a range, all between."""
    found = {min(int(value * depth), depth - 1) for value in depths}
    return tuple(range(min(found), max(found) + 1)) if len(depths) == 2 else tuple(sorted(found))


def _plan(params: Any) -> HeadPlan:
    return HeadPlan(**{field.name: getattr(params, field.name) for field in fields(HeadPlan)})
