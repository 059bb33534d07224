"""Texts of a sentence encoder, ready to be run under any edit above the frozen layers.

    log p(y | x) = log softmax_y (scale * cos(E_x(x), E(label text)))

E_x is the encoder under the edit of text x, E the encoder itself: labels stay where they are, and an adapter learns
where texts belong among them. Gradients are those of a contrastive loss over the labels (as in sentence-transformers'
ranking losses). Batches are of texts of like length.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from personalization.scoring.edits import Batch, Edit, Shelf
from personalization.scoring.fixed import BATCH_TEXTS, Fixed


class FixedTexts(Fixed):
    """Texts [n] with the same label texts [K]; `scale`: the inverse temperature of the similarities."""

    def __init__(
        self, backbone: Any, texts: Sequence[str], labels: Sequence[str], scale: float, shelf: Shelf | None = None
    ) -> None:
        super().__init__(backbone, shelf)
        self.texts, self.scale, self.label_texts = texts, scale, labels
        sizes = BATCH_TEXTS
        size = max(1, sizes.get(self.model.device.type, sizes["cpu"]) // backbone.smaller)
        order = np.array(sorted(range(len(texts)), key=lambda row: -len(texts[row])), dtype=np.int64)
        self.members = [order[at : at + size] for at in range(0, len(order), size)]
        self._depends = {
            "texts": texts, "labels": labels, "batch": size, "attention": self.model.config._attn_implementation,
        }  # fmt: skip

    @cached_property
    def labels(self) -> Tensor:
        """Embeddings of the labels, float32 [K, d], to be judged and to be learned from."""
        found = self.backbone.embeddings(self.label_texts)
        with torch.inference_mode(False):
            return torch.from_numpy(found).to(self.model.device)

    def batch(self, number: int) -> Batch:
        """A row is a text."""
        return Batch(self.members[number], self.members[number], None)

    def shape(self, number: int) -> tuple[int, int]:
        """Of the token ids."""
        rows, columns = self._features(number)["input_ids"].shape
        return int(rows), int(columns)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Every label is one piece, [K]."""
        return np.ones(len(self.label_texts), dtype=np.int64)

    def run(self, number: int, past: Any = None) -> Tensor:  # noqa: ARG002
        """Log-probabilities of a batch."""
        return self._scored(self._embedded(number) @ self.labels.T)

    def _scored(self, cosines: Tensor) -> Tensor:
        return (self.scale * cosines).log_softmax(dim=1).cpu()

    def scores_and_cosines(self, number: int, edits: Sequence[Edit] = ()) -> tuple[Tensor, Tensor]:
        """Scores of a batch, and the cosine of each text with each label."""
        cosines = self._under(edits, number, lambda _: self._embedded(number) @ self.labels.T)
        return self._scored(cosines), cosines.cpu()

    def embeddings(self, edits: Sequence[Edit] = ()) -> NDArray[np.float32]:
        """Embeddings of all texts at length one, float32 [n, d]."""
        self._prepare(edits)
        out = np.empty((len(self.texts), self.backbone.embedding_width), dtype=np.float32)
        with torch.inference_mode():
            for number, members in enumerate(self.members):
                out[members] = self._under(edits, number, lambda _, n=number: self._embedded(n)).cpu().numpy()
        return out

    def prepare(self) -> None:
        """Embed the labels, without edits."""
        self.labels  # noqa: B018

    def _features(self, number: int) -> Any:
        return self.backbone.features([self.texts[row] for row in self.members[number]])

    def _embedded(self, number: int) -> Tensor:
        """Embeddings of a batch, at length one, float32 [b, d]."""
        features = self._features(number)
        if not features["input_ids"].shape[1]:  # texts without a token
            return torch.zeros(len(self.members[number]), self.backbone.embedding_width, device=self.model.device)
        return nn.functional.normalize(self.backbone.encoder(features)["sentence_embedding"].float(), dim=-1)
