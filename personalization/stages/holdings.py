"""What a chain will hold on disk and in memory, told before anything is run, in bytes.

Each stage tells it of the dearest trial that its space allows, and of all trials together; what a stage keeps is its
own knowledge. The figures are upper bounds: states of `size_limit` bytes at most are stored, and not all of a study's
trials are the dearest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

from personalization.backbones.location import adapter_base, module_folders, read_json
from personalization.data.known import distinct, known_items, learned_histories
from personalization.data.records import Dataset
from personalization.errors import DataError

SAMPLE = 200
"""Prompts whose length is looked at."""
BYTES_A_TOKEN = 3
"""Of text; a tokenizer makes fewer tokens of most languages."""
FRAME_BYTES = 64
"""Bytes of the words that a task puts around an item."""
INDEXED = 100
"""Of an item of a history in arrays: whose it is, its age, label and relevance."""
RECORD = 800
"""Of a question that is made of a history item, with what it refers to."""

WIDTH = ("hidden_size", "n_embd", "d_model", "dim", "emb_dim")
DEPTH = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
INNER = ("intermediate_size", "ffn_dim", "n_inner", "hidden_dim")
"""Names of a model's sizes in configs, by family."""

May = Mapping[str, Sequence[Any]]
"""Parameter -> the values that a study may give it; of a range its ends, as float."""


class Held(NamedTuple):
    """Bytes on disk, in memory, and of those what lies beside the model, on its device."""

    disk: float = 0.0
    memory: float = 0.0
    beside_model: float = 0.0

    def plus(self, other: Held) -> Held:
        """Both."""
        return Held(*(mine + theirs for mine, theirs in zip(self, other, strict=True)))


class Sizes(NamedTuple):
    """How much there is of everything. `prompt`, `item`: bytes of a question's prompt, and of a history item's text.

    `histories`: distinct ones that are known when tune questions are asked; `known`: their items in all; `items`:
    labelled items of the tune users; `linear`: inputs and outputs of the linear maps of one layer, added up; `width`,
    `depth`, `itemsize` of the model; `trials`: how many there are at most; `below`: how many different chains of lower
    stages are kept.
    """

    questions: int
    labels: int
    users: int
    histories: int
    known: int
    items: int
    prompt: float
    item: float
    width: int
    depth: int
    linear: int
    itemsize: int
    trials: int
    below: int = 1

    @property
    def prompt_tokens(self) -> float:
        """Of a question, with its labels."""
        return self.prompt / BYTES_A_TOKEN + 2 * self.labels

    @property
    def scores(self) -> float:
        """Bytes of the label scores of the questions."""
        return self.questions * self.labels * 4

    def states(self, prompts: float, longer: float = 0.0) -> float:
        """Bytes of one layer's states of so many prompts, each so many bytes longer than a question's."""
        return prompts * (self.prompt_tokens + longer / BYTES_A_TOKEN) * self.width * self.itemsize

    def settings(self, *values: Sequence[Any]) -> int:
        """How many different settings of these parameters are tried at most; a range has as many as trials."""
        ranges = [len(found) == 2 and all(isinstance(value, float) for value in found) for found in values]
        counts = (self.trials if ends else len(found) for ends, found in zip(ranges, values, strict=True))
        return min(self.trials, prod(counts))


def sizes_of(tune: Dataset, prompts: Sequence[str], model: Path, itemsize: int, trials: int) -> Sizes:
    """Of a study's tune users and its model's folder."""
    histories, _ = distinct([known_items(tune.task, question) for question in tune.questions])
    some = prompts[:: max(1, len(prompts) // SAMPLE)]
    texts = [len(item.text.encode()) for items in histories[:SAMPLE] for item in items]
    learned = learned_histories(tune)
    width, depth, linear = _shape(model)
    return Sizes(
        questions=len(tune),
        labels=len(tune.labels),
        users=len(learned),
        histories=len(histories),
        known=sum(map(len, histories)),
        items=sum(map(len, learned.values())),
        prompt=sum(len(text.encode()) for text in some) / max(1, len(some)),
        item=sum(texts) / max(1, len(texts)),
        width=width,
        depth=depth,
        linear=linear,
        itemsize=itemsize,
        trials=trials,
    )


def _shape(model: Path) -> tuple[int, int, int]:
    """(width, depth, inputs and outputs of a layer's linear maps), as the config of a model says."""
    folder = module_folders(model)[0]
    whole = read_json((adapter_base(folder) or folder) / "config.json")
    own = whole.get("text_config") or whole
    width, depth, inner = (
        next((int(own[name]) for name in names if own.get(name)), None) for names in (WIDTH, DEPTH, INNER)
    )
    if width is None or depth is None:
        raise DataError(f"{folder / 'config.json'} says no width or depth; known are {', '.join(WIDTH + DEPTH)}")
    inner = inner or 4 * width
    return width, depth, 8 * width + 3 * (width + inner)
