"""A backbone behind the table store: what was scored once is read, and the model is loaded only when it is needed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import date
from functools import cache, cached_property
from importlib.metadata import version
from pathlib import Path
from threading import RLock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from personalization.backbones import Backbone, load_backbone
from personalization.backbones.location import (
    is_of_hub,
    locate_model,
    model_fingerprint,
    model_kind,
    tells_the_day,
    usable_dtype,
)
from personalization.files import sha256_of, write_atomic
from personalization.scoring.store import Keep, key_of, stored_table

NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")
"""Tells what device "auto" will be without importing torch."""


@cache
def _code() -> str:
    """SHA-256 of the code that makes scores: a mended scorer reads no old table."""
    room = Path(__file__).parent
    files = [
        room / "__init__.py",
        room / "causal.py",
        room / "encoder.py",
        room / "encoding.py",
        room / "loading.py",
        *sorted((room.parent / "scoring").glob("*.py")),
    ]
    return "".join(sha256_of(file) for file in files)


class CachedScorer:
    """`label_logprobs` of one model, stored by content.

    The key holds weights, tokenizer, prompts, continuations, dtype, device, path of the blocks, chat mode (and the day,
    where a chat template tells it), code and library versions. A pass that was killed goes on with the batch it was at.
    `truncated` counts the prompts that were cut to fit the context, also those read from the store. One thread
    uses the model at a time; what edits it for several passes holds `lock` meanwhile, as `Deployment.predict` does.
    """

    def __init__(
        self,
        model: str,
        folder: Path,
        dtype: str = "float32",
        device: str = "auto",
        blocks: str | None = None,
        chat: bool = False,
        revision: str | None = None,
    ) -> None:
        self.model = model
        self.revision = revision
        self.folder = folder
        self.asked_dtype = dtype
        self.device = device
        self.blocks = blocks
        self.chat = chat
        self.lock = RLock()
        self._cut: dict[str, int] = {}

    @property
    def truncated(self) -> int:
        """Prompts that were cut, each list of prompts counted once."""
        return sum(self._cut.values())

    @property
    def place(self) -> str:
        """The device, where it is "auto" as far as it is known without torch."""
        return self.device if self.device != "auto" else ("gpu" if NVIDIA_DRIVER.exists() else "cpu")

    @cached_property
    def dtype(self) -> str:
        """What is computed with: what was asked for, or float32 where the processor lacks it."""
        return usable_dtype(self.asked_dtype, self.place == "cpu")

    @cached_property
    def files(self) -> Path:
        """The model's folder. A branch of a hub model is resolved once, so that all is read from one commit."""
        return locate_model(self.model, self.revision)

    @property
    def commit(self) -> str | None:
        """The commit of a hub model, after which the hub's cache names its folder; None for any other."""
        return self.files.name if is_of_hub(self.model) else None

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the model's files."""
        return model_fingerprint(self.files)

    @cached_property
    def kind(self) -> str:
        """Which of `BACKBONES` the model is."""
        return model_kind(self.files)

    @cached_property
    def backbone(self) -> Backbone:
        """The model itself, loaded on first use."""
        loaded: Backbone = load_backbone(self.kind, str(self.files), self.dtype, self.device, self.blocks, self.chat)
        return loaded

    @cached_property
    def embedding_width(self) -> int:
        """Length of an embedding; noted beside the tables, so that reading one needs no model."""
        note = self.folder / f"{key_of({'width_of': self.fingerprint})}.width"
        if not note.exists():
            write_atomic(note, str(self.backbone.embedding_width))
        return int(note.read_text())

    @cached_property
    def identity(self) -> dict[str, Any]:
        """All that a score depends on besides its text."""
        return {
            "model": self.fingerprint,
            "dtype": self.dtype,
            "device": self.place,
            "blocks": self.blocks,
            "chat": self.chat,
            "day": date.today().isoformat() if self.chat and tells_the_day(self.files) else None,
            "code": _code(),
            "libraries": [version(name) for name in ("torch", "transformers", "tokenizers", "sentence-transformers")],
        }

    def last_states(
        self, prompts: Sequence[str], progress: Callable[[int, int], None] | None = None, site: str = "block"
    ) -> NDArray[np.float32]:
        """One state of each prompt where it leaves each layer, float32 [n, L, d], stored like scores.

        `site`, for causal models alone: "mlp" for what leaves each layer's MLP.
        """
        layers, width = self.backbone.depth, self.backbone.width
        where = {} if site == "block" else {"site": site}

        def compute(table: NDArray[np.float32], _: Keep) -> int:
            before = self.backbone.truncated
            table[:] = self.backbone.last_states(prompts, progress, **where).reshape(len(prompts), -1)
            return self.backbone.truncated - before

        key = key_of({**self.identity, **where, "states_of": list(prompts)})
        with self.lock:
            table, truncated = stored_table(self.folder, key, (len(prompts), layers * width), compute)
        self._cut[key_of({"prompts": list(prompts)})] = truncated
        return table.reshape(len(prompts), layers, width)

    def too_long(self, prompts: Sequence[str], continuations: Sequence[str]) -> list[int]:
        """Which prompts of a causal model do not fit its context."""
        causal: Any = self.backbone
        return list(causal.too_long(prompts, continuations))

    def shortened(self, frame: str, texts: Sequence[str], continuations: Sequence[str]) -> list[str]:
        """Texts cut to equal shares of the room that a causal model's context has beside `frame`."""
        causal: Any = self.backbone
        return list(causal.shortened(frame, texts, continuations))

    def embeddings(
        self, texts: Sequence[str], progress: Callable[[int, int], None] | None = None
    ) -> NDArray[np.float32]:
        """Embeddings of length one, float32 [n, d], stored like scores."""

        def compute(table: NDArray[np.float32], _: Keep) -> int:
            table[:] = self.backbone.embeddings(texts, progress)
            return 0

        if not texts:
            return np.empty((0, 0), dtype=np.float32)
        width = self.embedding_width
        key = key_of({**self.identity, "embeddings_of": list(texts)})
        with self.lock:
            return stored_table(self.folder, key, (len(texts), width), compute)[0]

    def label_logprobs(
        self,
        prompts: Sequence[str],
        continuations: Sequence[str],
        progress: Callable[[int, int], None] | None = None,
    ) -> NDArray[np.float32]:
        """Natural-log probabilities float32 [n, K], from the store where they were computed before."""
        key = key_of({**self.identity, "prompts": list(prompts), "continuations": list(continuations)})

        def compute(table: NDArray[np.float32], keep: Keep) -> int:
            before = self.backbone.truncated
            table[:] = self.backbone.label_logprobs(prompts, continuations, progress, table, keep)
            return self.backbone.truncated - before

        with self.lock:
            table, truncated = stored_table(self.folder, key, (len(prompts), len(continuations)), compute)
        self._cut[key_of({"prompts": list(prompts)})] = truncated
        return table
