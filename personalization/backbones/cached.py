"""A backbone behind the stores: what was scored once is read, and the model is loaded only when it is needed.

A server has no store: it scores what it is asked, and remembers the latest embeddings.
"""

from __future__ import annotations

from collections import OrderedDict
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
from personalization.backbones.chat import Chat
from personalization.backbones.location import (
    context_of,
    is_of_hub,
    locate_model,
    model_fingerprint,
    model_kind,
    tells_the_day,
    tokenizer_folder,
    usable_dtype,
)
from personalization.files import sha256_of, write_atomic
from personalization.scoring.edits import Edit, Shelf
from personalization.scoring.store import Compute, Keep, Progress, key_of, stored_table
from personalization.scoring.texts import TextRows

SPECIAL = 8
"""Tokens without bytes that a tokenizer may put around a text."""
NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")
"""Tells what device "auto" will be without importing torch."""


@cache
def _code() -> str:
    """SHA-256 of the code that makes scores: a mended scorer reads no old table."""
    room = Path(__file__).parent
    files = [
        room / "__init__.py",
        room / "causal.py",
        room / "chat.py",
        room / "encoder.py",
        room / "encoding.py",
        room / "gguf.py",
        room / "loading.py",
        *sorted((room.parent / "scoring").glob("*.py")),
    ]
    return "".join(sha256_of(file) for file in files)


class CachedScorer:
    """`label_logprobs` of one model, and its scores under edits, stored by content.

    The key holds weights, tokenizer, prompts, continuations, dtype, device, path of the blocks, chat mode (and the day,
    where a chat template tells it), code and library versions. A pass that was killed goes on with the batch it was at.
    `folder`: None where nothing is stored. `truncated` counts the questions whose item was cut to fit the context, also
    those read from the store. One thread uses the model at a time; what edits it for several passes holds `lock`
    meanwhile, as `Deployment.predict` does. `watch` is told the scores [n, K] of each pass. `recent`: how many
    tables stay in memory where nothing is stored; two configs with one model ask for the same ones in turn.
    `retriever`: an encoder that embeds texts in the place of this model.
    """

    watch: Callable[[NDArray[np.float32]], None] | None = None
    recent = 0
    retriever: CachedScorer | None = None

    def __init__(
        self,
        model: str,
        folder: Path | None,
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
        self._recent: OrderedDict[str, NDArray[np.float32]] = OrderedDict()
        self._states: dict[tuple[str, tuple[int, ...]], TextRows] = {}
        self.texts_asked = self.texts_embedded = 0

    def unstored(self) -> CachedScorer:
        """The same loaded model, with nothing in any store; a retriever is loaded when a text is embedded."""
        found = self._apart()
        found.backbone = self.backbone
        return found

    def _apart(self) -> CachedScorer:
        """The same model, loaded or not, with nothing in any store."""
        found = CachedScorer(self.model, None, self.asked_dtype, self.device, self.blocks, self.chat, self.revision)
        found.retriever = None if self.retriever is None else self.retriever._apart()
        found.lock = self.lock
        if "backbone" in vars(self):
            found.backbone = self.backbone
        if "_chat" in vars(self):
            found._chat = self._chat
        return found

    @property
    def truncated(self) -> int:
        """Prompts that were cut, each list of prompts counted once."""
        return sum(self._cut.values())

    def note_cut(self, prompts: Sequence[str], count: int) -> None:
        """Count prompts whose asked item was cut to fit."""
        self._cut[key_of({"cut": list(prompts)})] = count

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

    @property
    def embedder(self) -> CachedScorer:
        """What says how alike texts are: the retriever, else the model itself."""
        return self.retriever or self

    @cached_property
    def backbone(self) -> Backbone:
        """The model itself, loaded on first use."""
        loaded: Backbone = load_backbone(self.kind, str(self.files), self.dtype, self.device, self.blocks, self.chat)
        return loaded

    @property
    def shelf(self) -> Shelf | None:
        """Where hidden states are stored."""
        return None if self.folder is None else Shelf(self.folder / "states", self.identity)

    @cached_property
    def _embedded(self) -> TextRows:
        """Embeddings by text. Their width is noted beside them, so that reading one needs no model."""
        if self.folder is None:
            return TextRows(None, self.backbone.embedding_width)
        path = self.folder / f"{key_of({**self.identity, 'embeddings': 'by text'})}"
        note = path.with_suffix(".width")
        if not note.exists():
            write_atomic(note, str(self.backbone.embedding_width))
        return TextRows(path, int(note.read_text()))

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
        self,
        prompts: Sequence[str],
        layers: Sequence[int],
        progress: Progress | None = None,
        site: str = "block",
    ) -> NDArray[np.float32]:
        """The state of each prompt where it leaves these layers, or of a causal model their MLPs, float32 [n, L, d].

        Stored by prompt and layers; what was read here with further layers is taken from there.
        """
        width = len(layers) * self.backbone.width
        where = {} if site == "block" else {"site": site}

        def compute(new: list[str], keep: Keep) -> None:
            left = self._read_with_more(new, layers, site, keep)
            known = np.full((len(left), len(layers), self.backbone.width), np.nan, dtype=np.float32)

            def flat(rows: NDArray[np.int64], states: NDArray[np.float32]) -> None:
                keep(left[rows], states.reshape(len(rows), -1))

            if len(left):
                self.backbone.last_states([new[row] for row in left.tolist()], layers, known, progress, flat, **where)

        with self.lock:
            key = key_of({**self.identity, **where, "states": "by prompt", "layers": list(layers)})
            path = None if self.folder is None else self.folder / key
            stored = self._states.setdefault((site, tuple(layers)), TextRows(path, width, most=0))
            return stored.of(prompts, compute).reshape(len(prompts), len(layers), -1)

    def _read_with_more(
        self, prompts: Sequence[str], layers: Sequence[int], site: str, keep: Keep
    ) -> NDArray[np.int64]:
        """Keep states of prompts that were read with these and further layers; the rows of the other prompts."""
        left, width = np.arange(len(prompts), dtype=np.int64), self.backbone.width
        for (at, own), rows in self._states.items():
            if at == site and set(layers) < set(own) and len(left):
                found, there = rows.known([prompts[row] for row in left.tolist()])
                some = found.reshape(-1, len(own), width)[there][:, [own.index(layer) for layer in layers]]
                keep(left[there], some.reshape(-1, len(layers) * width))
                left = left[~there]
        return left

    def _table(self, key: str, shape: tuple[int, int], prompts: Sequence[str], compute: Compute) -> NDArray[np.float32]:
        """A table from the store, or computed."""
        with self.lock:
            if self.folder is None:
                table = np.full(shape, np.nan, dtype=np.float32)
                compute(table, lambda _rows, _scores: None)
                return table
            table, truncated = stored_table(self.folder, key, shape, compute)
        self._cut[key_of({"prompts": list(prompts)})] = truncated
        return table

    def edited(
        self,
        prompts: Sequence[str],
        continuations: Sequence[str],
        edits: Sequence[Edit],
        run: Callable[[], tuple[NDArray[np.float32], list[Any]]],
    ) -> tuple[NDArray[np.float32], list[Any]]:
        """(scores [n, K] under edits, what each edit did): `run()`, or from the store what it gave before."""
        if self.folder is None:
            return run()
        asked = {"prompts": list(prompts), "continuations": list(continuations), "edits": [edit.key for edit in edits]}

        def compute(table: NDArray[np.float32], _: Keep) -> list[Any]:
            table[:], told = run()
            return told

        shape = len(prompts), len(continuations)
        return stored_table(self.folder, key_of({**self.identity, **asked}), shape, compute)

    def too_long(self, prompts: Sequence[str], continuations: Sequence[str]) -> list[int]:
        """Which prompts of a causal model do not fit its context. A text has no more tokens than bytes, so that most
        are known to fit without the model."""
        room = context_of(self.files) or 0
        room -= SPECIAL + max((len(text.encode()) for text in continuations), default=0)
        unsure = [row for row, prompt in enumerate(prompts) if len(prompt.encode()) > room]
        if not unsure:
            return []
        causal: Any = self.backbone
        return [unsure[at] for at in causal.too_long([prompts[row] for row in unsure], continuations)]

    @cached_property
    def _chat(self) -> Chat:
        from transformers import AutoTokenizer

        return Chat(AutoTokenizer.from_pretrained(tokenizer_folder(self.files), trust_remote_code=False))

    def conversation(self, system: str | None, user: str) -> str:
        """What a chat model reads before its reply."""
        return self._chat.conversation(system, user)

    @property
    def end_of_turn(self) -> str:
        """What ends a chat model's reply."""
        return self._chat.end_of_turn

    def shortened(self, frame: str, texts: Sequence[str], continuations: Sequence[str]) -> list[str]:
        """Texts cut to equal shares of the room that a causal model's context has beside `frame`."""
        causal: Any = self.backbone
        return list(causal.shortened(frame, texts, continuations))

    def embeddings(self, texts: Sequence[str], progress: Progress | None = None) -> NDArray[np.float32]:
        """Embeddings of length one by `embedder`, float32 [n, d]; each text is embedded once."""
        if not texts:
            return np.empty((0, 0), dtype=np.float32)
        if self.retriever is not None:
            return self.retriever.embeddings(texts, progress)
        with self.lock:
            self.texts_asked += len(texts)

            def compute(new: list[str], keep: Keep) -> None:
                self.texts_embedded += len(new)
                keep(np.arange(len(new)), self.backbone.embeddings(new, progress))

            return self._embedded.of(texts, compute)

    def label_logprobs(
        self,
        prompts: Sequence[str],
        continuations: Sequence[str],
        progress: Progress | None = None,
    ) -> NDArray[np.float32]:
        """Natural-log probabilities float32 [n, K], from the store where they were computed before."""
        key = key_of({**self.identity, "prompts": list(prompts), "continuations": list(continuations)})

        def compute(table: NDArray[np.float32], keep: Keep) -> int:
            before = self.backbone.truncated
            table[:] = self.backbone.label_logprobs(prompts, continuations, progress, table, keep)
            return self.backbone.truncated - before

        if key in self._recent:
            return self._recent[key].copy()
        found = self._table(key, (len(prompts), len(continuations)), prompts, compute)
        if self.watch is not None:
            self.watch(found)
        if self.recent and self.folder is None:
            self._recent[key] = found.copy()
            while len(self._recent) > self.recent:
                self._recent.popitem(last=False)
        return found
