"""A model whose scores are planted: what a study of it finds is known."""

from functools import cache
from threading import RLock
from types import SimpleNamespace

import numpy as np

from personalization.backbones.location import locate_model
from personalization.data.demo.world import TAGS

GOLDS: dict[str, str] = {}


@cache
def noise(prompt, labels):
    return np.random.default_rng(list(prompt.encode())).normal(size=labels)


class BiasedScorer:
    """A model that leans to the gold label and too much to "true story"; the bias can be switched off."""

    bias = 3.0
    skill = 1.0
    truncated = 0
    folder = None
    shelf = None
    kind = "causal"
    commit = None
    chat = False
    dtype = "float32"
    place = "cpu"
    files = locate_model("demo")
    lock = RLock()
    retriever = None
    backbone = SimpleNamespace(forget=lambda: None)

    def __init__(self, model, folder, dtype="float32", device="auto", blocks=None, chat=False, revision=None):
        self.fingerprint, self.model = "planted-model", model

    @property
    def embedder(self):
        return self

    def unstored(self):
        return self

    def too_long(self, prompts, continuations):
        return []

    def label_logprobs(self, prompts, continuations, progress=None):
        scores = np.empty((len(prompts), len(continuations)), dtype=np.float32)
        for row, prompt in enumerate(prompts):
            scores[row] = noise(prompt, len(continuations))
            gold = GOLDS.get(prompt.removesuffix("\nanswer:"))
            if gold is not None:
                scores[row, TAGS.index(gold)] += self.skill
        scores[:, TAGS.index("true story")] += self.bias
        return scores
