"""What a pass of the model and a training cost here, measured on a few questions and items before anything is raced."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from personalization.backbones.cached import CachedScorer
from personalization.backbones.location import weights_of
from personalization.data.records import Dataset
from personalization.methods.adapters.user_adapters import Plan, UserAdapters
from personalization.methods.history.labelled import labelled_items
from studies.auto.arms import TRAINED, Scene
from studies.auto.plan import listed
from studies.study import OpenStudy, find_study, stored_spec, study_names

SAMPLED = {"causal": 8, "encoder": 64}
"""Questions that are asked to learn what a pass costs; half as many items, and three times those, are learned from."""
COUNTED = 2000
"""Items whose tokens are counted, user by user."""


def fastest(*works: Callable[[], object]) -> list[float]:
    """Seconds of the fastest run of each, in turns, of as many as a second for each holds, one to ten: what else a
    machine does only adds, and adds to all alike."""
    seconds: list[list[float]] = [[] for _ in works]
    while len(seconds[0]) < 10 and sum(map(sum, seconds)) < len(works):
        for runs, work in zip(seconds, works, strict=True):
            started = time.perf_counter()
            work()
            runs.append(time.perf_counter() - started)
    return list(map(min, seconds))


def measured(opened: OpenStudy) -> Scene:
    """What the costs of arms depend on. A few questions are asked, with nothing in any store; a pass over all takes
    longer by as much as they are longer in characters."""
    tune, scorer = opened.splits.tune, opened.scorer
    work = opened.objective.work("tune")
    count = min(len(work), SAMPLED[scorer.kind])
    rows = np.linspace(0, len(work) - 1, count).round().astype(int)
    asked, bare = [work.prompts[row] for row in rows], scorer.unstored()
    bare.label_logprobs(asked[:2], work.spoken)

    def ask() -> None:
        scorer.backbone.forget()
        bare.label_logprobs(asked, work.spoken)

    seconds = fastest(ask)[0] * sum(map(len, work.prompts)) / max(1, sum(map(len, asked)))
    items = {question.user_id: question.history for question in tune.questions}
    texts = [item.text for history in items.values() for item in history if item.label is not None]
    asked_length = float(np.mean([len(prompt) for prompt in work.prompts]))
    item_length = float(np.mean([len(text) for text in texts])) if texts else 0.0
    return Scene(scorer.kind, len(work), len(texts), asked_length, item_length, seconds, 0.0, _embedding(scorer))


def _embedding(scorer: CachedScorer) -> float:
    """What a text costs the encoder that embeds it, as a share of the model's pass over it, taken to go as their
    weights; 0 where words are ranked without a model."""
    if scorer.embedder.kind != "encoder":
        return 0.0
    return weights_of(scorer.embedder.files) / max(1, weights_of(scorer.files))


class TrainingCost(NamedTuple):
    """Seconds that a training on all labelled items takes `once`, for the frozen layers' pass, and `each` epoch, with
    the judging of what is held out."""

    once: float
    each: float

    def seconds(self, epochs: int) -> float:
        """Of a training of so many epochs."""
        return self.once + epochs * self.each

    def epochs_within(self, seconds: float) -> int:
        """As many epochs as fit, from one to those that a race takes where time is no matter."""
        return next((n for n in range(TRAINED["epochs"], 1, -1) if self.seconds(n) <= seconds), 1)


def epochs_of(base: OpenStudy, studies: Iterable[str], fitting: int) -> int:
    """Epochs of a race's trainings: those of the first of these studies that is in the storage, else `fitting`."""
    known = study_names(base.storage)
    begun = next((name for name in studies if name in known), None)
    if begun is None:
        return fitting
    kept = stored_spec(find_study(begun, base.home, base.spec.storage)).space["adapter.epochs"]
    assert isinstance(kept, int)
    return kept


def training_cost(opened: OpenStudy) -> TrainingCost:
    """What the LoRA that a race tries first costs on all labelled items of the tune users here; nothing where there are
    too few items to learn from.

    The difference of two trainings on few items, so that what is done once in each takes no part, by the token: items
    of one user stand in one row and share what they begin with, which few items of many users do not. A third one, of
    one epoch, tells what the epochs take of it.
    """
    tune, scorer = opened.splits.tune, opened.scorer
    items, count = labelled_items(tune), SAMPLED[scorer.kind] // 2
    if len(items) < 3 * count:
        return TrainingCost(0.0, 0.0)
    first = {full.removeprefix("adapter."): value for full, value in listed()["lora"][scorer.kind][0].items()}
    told = {name: first[name] for name in ("start", "rank", "targets", "word_dropout")}
    epochs = TRAINED["epochs"]
    plan = Plan(epochs=epochs, patience=TRAINED["patience"], **told)
    few, more = (_only(items, np.linspace(0, len(items) - 1, size).round().astype(int)) for size in (count, 3 * count))
    with tempfile.TemporaryDirectory() as folder:
        adapters = UserAdapters(scorer.unstored(), Path(folder))

        def learn(some: Dataset, plan: Plan) -> None:
            scorer.backbone.forget()
            with tempfile.TemporaryDirectory(dir=folder) as place:
                UserAdapters(adapters.scorer, Path(place)).learn(tune, plan, items=some)

        short = replace(plan, epochs=1)
        learn(few, short)  # what a process does once, such as choosing its products, is done then
        of_few, of_more, of_one_epoch = fastest(
            partial(learn, few, plan), partial(learn, more, plan), partial(learn, more, short)
        )
        tokens = [adapters.tokens(some, plan) for some in (few, more)]
        whole = _only(items, np.arange(min(len(items), COUNTED)))
        of_all = adapters.tokens(whole, plan) * len(items) / len(whole)
    scorer.backbone.forget()
    a_token = max(0.0, of_more - of_few) / (tokens[1] - tokens[0])
    each = min(a_token / epochs, max(0.0, of_more - of_one_epoch) / (epochs - 1) / tokens[1])
    return TrainingCost((a_token - epochs * each) * of_all, each * of_all)


def _only(items: Dataset, rows: NDArray[np.int64]) -> Dataset:
    return Dataset(items.task, items.labels, tuple(items.questions[row] for row in rows))
