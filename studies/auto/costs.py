"""What a pass of the model costs here, measured on a few questions before anything is raced."""

from __future__ import annotations

import time

import numpy as np

from studies.auto.arms import Scene
from studies.study import OpenStudy

SAMPLED = {"causal": 8, "encoder": 64}
"""Questions that are asked to learn what a pass costs."""


def measured(opened: OpenStudy) -> Scene:
    """What the costs of arms depend on. A few questions are asked, with nothing in any store; a pass over all takes
    longer by as much as they are longer in characters."""
    tune, scorer = opened.splits.tune, opened.scorer
    work = opened.objective.plain("tune")
    count = min(len(work), SAMPLED[scorer.kind])
    rows = np.linspace(0, len(work) - 1, count).round().astype(int)
    asked, bare = [work.prompts[row] for row in rows], scorer.unstored()
    bare.label_logprobs(asked[:2], work.spoken)
    scorer.backbone.forget()
    started = time.perf_counter()
    bare.label_logprobs(asked, work.spoken)
    seconds = (time.perf_counter() - started) * sum(map(len, work.prompts)) / max(1, sum(map(len, asked)))
    items = {question.user_id: question.history for question in tune.questions}
    texts = [item.text for history in items.values() for item in history if item.label is not None]
    asked_length = float(np.mean([len(prompt) for prompt in work.prompts]))
    item_length = float(np.mean([len(text) for text in texts])) if texts else 0.0
    return Scene(scorer.kind, len(work), len(texts), asked_length, item_length, seconds)
