"""Models behind one interface. To add a kind: a file here with a loader, and a line in `BACKBONES`.

A backbone owns a model and its tokenizer and knows texts, and no user. The contract tests run over the table.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from personalization.errors import UsageError
from personalization.scoring.edits import Edit, Shelf
from personalization.scoring.store import Keep, Progress

SCALE = 20.0
"""Inverse temperature of an encoder's similarities; what sentence-transformers' ranking losses train with."""

BACKBONES = {
    "causal": "personalization.backbones.causal:load_causal",
    "encoder": "personalization.backbones.encoder:load_encoder",
}
"""kind -> "module:function"."""


class Backbone(Protocol):
    """What every backbone offers. `truncated` counts the prompts that were cut to fit it; `smaller`: by
    what fixed batches are divided to fit into memory."""

    truncated: int
    smaller: int
    model: Any

    @property
    def layers(self) -> Any: ...

    @property
    def depth(self) -> int: ...

    @property
    def width(self) -> int: ...

    @property
    def embedding_width(self) -> int: ...

    def label_logprobs(
        self,
        prompts: Sequence[str],
        continuations: Sequence[str],
        progress: Progress | None = None,
        known: NDArray[np.float32] | None = None,
        keep: Keep | None = None,
    ) -> NDArray[np.float32]:
        """Log-probability of each label's text after, or for, each prompt, float32 [n, K]."""

    def forget(self) -> None:
        """Drop what is kept in memory between calls."""

    def last_states(
        self,
        prompts: Sequence[str],
        layers: Sequence[int] | None = None,
        known: NDArray[np.float32] | None = None,
        progress: Progress | None = None,
        keep: Keep | None = None,
    ) -> NDArray[np.float32]:
        """One state of each prompt where it leaves these layers, or all, float32 [n, L, d]."""

    def fixed(
        self, prompts: Sequence[str], spoken: Sequence[str], edits: Sequence[Edit] = (), shelf: Shelf | None = None
    ) -> Any:
        """Prompts with these label texts, ready to be run under edits: `FixedRows` or `FixedTexts`."""

    def embeddings(self, texts: Sequence[str], progress: Progress | None = None) -> NDArray[np.float32]:
        """Embeddings of length one, float32 [n, d]."""


def load_backbone(kind: str, path_or_hub_id: str, dtype: str, device: str, blocks: str | None, chat: bool) -> Any:
    """Load a model of this kind; `chat`, a causal model's template, is refused elsewhere."""
    module, _, name = BACKBONES[kind].partition(":")
    load = getattr(import_module(module), name)
    if kind == "causal":
        return load(path_or_hub_id, dtype, device, blocks, chat)
    if chat:
        raise UsageError(f"model {path_or_hub_id} is of kind {kind}: it has no chat template; set chat: false")
    return load(path_or_hub_id, dtype, device, blocks)
