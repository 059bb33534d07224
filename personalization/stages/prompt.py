"""Which of the user's items stand in the prompt, and how labels are spoken; see `methods.history.asking`.

Nothing is learned. An encoder's similarities are multiplied by `scale`; adapters keep the one that they were trained
with. Cost: one scoring pass for each (k, ranking, mix), or label text.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from personalization.methods.history.asking import OWN, Asking
from personalization.stages import Stage
from personalization.stages.facts import Facts
from personalization.stages.holdings import FRAME_BYTES, INDEXED, Held, May, Sizes
from personalization.stages.work import KEPT, Tools, Work


class Prompt(Stage):
    """k items of the history in front of a causal model's question; an encoder's label text and scale."""

    earlier: Mapping[str, Any] = {"wording": OWN}

    def act(self, params: Any, learned: Any, work: Work, tools: Tools) -> Work:  # noqa: ARG002
        """Other prompts, or other label texts."""
        asking = Asking(params.k, params.ranking, params.mix, params.template, params.wording)
        if asking == work.asking:
            return work if params.scale == work.scale else replace(work, scale=params.scale)
        dataset = asking.worded(work.dataset)
        prompts, shortened = asking.prompts(tools.scorer, dataset)
        spoken = tuple(asking.spoken(tools.scorer, dataset))
        return replace(
            work,
            dataset=dataset,
            asking=asking,
            prompts=tuple(prompts),
            spoken=spoken,
            scale=params.scale,
            shortened=shortened,
        )

    def holds(self, may: May, sizes: Sizes) -> Held:
        """For each way to ask the scores, texts and tokens; the histories as arrays; embeddings of what is ranked."""
        most = max(may["k"])
        ranked = [may["ranking"], may["mix"]] if most else []
        settings = sizes.settings(may["wording"], may["template"], may["k"], *ranked)
        texts = sizes.questions * (sizes.prompt + most * (sizes.item + FRAME_BYTES))
        embedded = sizes.known * sizes.width * 4 if most and {"similarity", "mix"} & set(may["ranking"]) else 0
        kept = min(settings, KEPT)
        memory = 2 * kept * texts + 3 * embedded + (sizes.known * INDEXED if most else 0)
        return Held(settings * sizes.scores + embedded, memory)

    def facts(self, params: Any, learned: Any, below: Work, done: Work, tools: Tools) -> Facts:  # noqa: ARG002
        """Prompts that were cut to fit the model."""
        if not params.k:
            return Facts()
        said = [f"{done.shortened} prompts were cut to fit the model, history first"] if done.shortened else []
        return Facts(metrics={"prompts_shortened": float(done.shortened)}, remarks=said)
