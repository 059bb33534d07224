"""Adapters that stay on disk, more of them than memory is to hold: for each batch those of its rows are read.

A batch whose adapters do not fit is halved like any other batch. Cost: a batch of other users reads their files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from personalization.methods.adapters.lora import GroupedLora
from personalization.methods.adapters.prefix import Adapters


class StoredAdapters:
    """`folders`: one a group; `read` makes adapters of some of them; `below`: what prefixes stand on."""

    def __init__(
        self,
        model: PreTrainedModel,
        folders: Sequence[Path],
        read: Callable[[Sequence[Path]], Adapters],
        below: GroupedLora | None = None,
    ) -> None:
        self.model, self.folders, self.read, self.below = model, folders, read, below
        self._latest: tuple[tuple[int, ...], Adapters] | None = None

    @contextmanager
    def applied(self, rows: Tensor, dropout: float = 0.0) -> Iterator[Cache | None]:
        """Run the model with the adapter of group `rows` [B] in each row; -1 leaves a row as it is."""
        own = rows.clone()
        present, own[rows >= 0] = torch.unique(rows[rows >= 0], return_inverse=True)
        if not len(present):
            yield None
            return
        with self._of(tuple(present.tolist())).applied(own, dropout) as cache:
            yield cache

    def _of(self, groups: tuple[int, ...]) -> Adapters:
        if self._latest is None or self._latest[0] != groups:
            self._latest = None  # room for the next ones
            self._latest = groups, self.read([self.folders[group] for group in groups])
        return self._latest[1]
