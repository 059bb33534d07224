"""Texts of several users, ready to be encoded with each one's adapter, again and again, above the frozen layers.

    log p(y | x) = log softmax_y (SCALE * cos(E_u(x), E(label text)))

E_u is the sentence encoder with the adapter of x's user, E the encoder itself: labels stay where they are, and an
adapter learns where texts belong among them. Gradients are those of a contrastive loss over the labels (as in
sentence-transformers' ranking losses). What leaves the last layer below the adapters is the same for all of them: it is
computed once and stored. Batches are fixed, of texts of like length.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from personalization.backbones import SCALE
from personalization.backbones.encoder import EncoderBackbone
from personalization.files import sha256_of
from personalization.methods.adapters.adapted_rows import table_of
from personalization.methods.adapters.prefix import Adapters
from personalization.scoring.products import fast_products
from personalization.scoring.resume import may_resume, output_of, parts_returned, resumed_after
from personalization.scoring.states import StoredStates
from personalization.scoring.store import key_of

BATCH = {"cpu": 16, "cuda": 256}
"""Texts in a batch, by device type; fixed, so that stored states fit the batches of later runs."""


class EncodedRows:
    """Texts [n] with the same label texts [K], and the adapter of each [n], -1 for none.

    `first`: the lowest adapted layer. `members`: the texts of each batch.
    """

    def __init__(
        self,
        backbone: EncoderBackbone,
        texts: Sequence[str],
        groups: NDArray[np.int64],
        labels: Sequence[str],
        first: int,
        folder: Path,
        identity: Mapping[str, Any] | str,
    ) -> None:
        self.backbone, self.model, self.texts, self.groups = backbone, backbone.model, texts, groups
        self.first, self.folder, self.layers = first, folder, backbone.layers
        self.labels = torch.from_numpy(backbone.embeddings(labels)).to(self.model.device)
        self.parts = parts_returned(self.model, self.layers)
        size = BATCH.get(self.model.device.type, BATCH["cpu"])
        order = np.array(sorted(range(len(texts)), key=lambda row: -len(texts[row])))
        self.members = [order[at : at + size] for at in range(0, len(order), size)]
        self.key = key_of({
            "identity": identity, "code": sha256_of(Path(__file__)), "texts": list(texts), "labels": list(labels),
            "batch": size, "first": first, "attention": self.model.config._attn_implementation,
        })  # fmt: skip
        self._states: StoredStates | None = None
        if first and self.members:
            with fast_products(self.model.device.type):
                resumable = may_resume(self.layers, first - 1, self.parts, partial(self._embedded, 0))
            self.first = first if resumable else 0

    @property
    def batches(self) -> int:
        """How many batches there are."""
        return len(self.members)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Every label is one piece, [K]."""
        return np.ones(len(self.labels), dtype=np.int64)

    def scores(self, number: int, lora: Adapters | None, dropout: float = 0.0) -> Tensor:
        """Log-probabilities of the texts `members[number]`, float32 [b, K]; with gradients where they are on."""
        return self.scores_and_cosines(number, lora, dropout)[0]

    def scores_and_cosines(self, number: int, lora: Adapters | None, dropout: float = 0.0) -> tuple[Tensor, Tensor]:
        """Scores of a batch, and the cosine of each text with each label."""
        with ExitStack() as stack:
            stack.enter_context(fast_products(self.model.device.type))
            if self.first:
                given = self.states[number].to(self.model.device)
                stack.enter_context(resumed_after(self.layers, self.first - 1, given, self.parts))
            if lora is not None:
                groups = torch.from_numpy(self.groups[self.members[number]]).to(self.model.device)
                stack.enter_context(lora.applied(groups, dropout))
            cosines = self._embedded(number) @ self.labels.T
        return (SCALE * cosines).log_softmax(dim=1).cpu(), cosines.cpu()

    def _embedded(self, number: int) -> Tensor:
        """Embeddings of a batch, at length one, float32 [b, d]."""
        features = self.backbone.features([self.texts[row] for row in self.members[number]])
        if not features["input_ids"].shape[1]:  # texts without a token
            return torch.zeros(len(self.members[number]), self.backbone.embedding_width, device=self.model.device)
        return nn.functional.normalize(self.backbone.encoder(features)["sentence_embedding"].float(), dim=-1)

    def table(self, lora: Adapters | None, progress: Callable[[int, int], None] | None = None) -> NDArray[np.float32]:
        """Scores of all texts, float32 [n, K]."""
        return table_of(self, lora, progress)

    @property
    def states(self) -> StoredStates:
        """What leaves the layer below the first adapted one, in every batch."""
        if self._states is None:
            ids = (self.backbone.features([self.texts[i] for i in rows])["input_ids"] for rows in self.members)
            shapes = [(int(batch.shape[0]), int(batch.shape[1])) for batch in ids]
            path = self.folder / f"{self.key}.states"
            self._states = StoredStates(path, shapes, self.backbone.width, self.model.dtype, self._run)
        return self._states

    def _run(self) -> Iterator[Tensor]:
        for number in range(len(self.members)):
            with torch.inference_mode(), fast_products(self.model.device.type):
                states = output_of(self.layers[self.first - 1], partial(self._embedded, number))
            yield states
