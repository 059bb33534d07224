"""Trained adapters as an edit of a forward pass: each prompt with the adapter of its group."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from personalization.scoring.edits import Batch, Sharing

if TYPE_CHECKING:
    from personalization.methods.adapters.prefix import Adapters
    from personalization.methods.adapters.stored import StoredAdapters


@dataclass(frozen=True)
class AdapterEdit:
    """`groups` int [n]: the adapter of each prompt, -1 for none; `owners` [n]: whose prompts may share a row.

    `adapters`: None until they are trained; `after`: the last layer below them; `content`: what they depend on;
    `dropout` is for training. Prompts of no prefix have the adapters below it, where there are any.
    """

    adapters: Adapters | StoredAdapters | None
    groups: NDArray[np.int64]
    owners: Sequence[str]
    after: int = -1
    prefix: int = 0
    content: str = ""
    dropout: float = 0.0

    @property
    def sharing(self) -> Sharing:
        """A row holds prompts of one user and one adapter."""
        return [f"{group} {owner}" for group, owner in zip(self.groups, self.owners, strict=True)]

    @property
    def touched(self) -> NDArray[np.bool_]:
        """Those with an adapter, or with adapters below their prefix."""
        return np.asarray((self.groups >= 0) | (self.prefix > 0))

    @property
    def key(self) -> str:
        """Digest of the adapters and of who has which."""
        return hashlib.sha256(f"{self.content} {self.prefix}".encode() + self.groups.tobytes()).hexdigest()

    def only(self, rows: NDArray[np.int64]) -> AdapterEdit:
        """The edit of other prompts."""
        return replace(self, groups=self.groups[rows], owners=[self.owners[row] for row in rows])

    def parts(self) -> Sequence[tuple[NDArray[np.int64], AdapterEdit]]:
        """Prompts behind a prefix, and those that have only what is below it."""
        everything = np.arange(len(self.groups))
        without = self.groups < 0
        if not self.prefix or not without.any():
            return [(everything, self)]
        from personalization.methods.adapters.lora import GroupedLora

        assert self.adapters is not None
        assert not isinstance(self.adapters, GroupedLora)
        mine, others = everything[~without], everything[without]
        bare = replace(
            self.only(others), adapters=self.adapters.below, groups=np.zeros(len(others), np.int64), prefix=0
        )
        return [(rows, edit) for rows, edit in ((mine, self.only(mine)), (others, bare)) if len(rows)]

    def applied(self, batch: Batch) -> AbstractContextManager[Any]:
        """Run a batch with its adapters."""
        import torch

        assert self.adapters is not None
        groups = torch.from_numpy(self.groups[batch.leaders]).to(self.adapters.model.device)
        return self.adapters.applied(groups, self.dropout)

    def ran(self, batches: int) -> None:
        """Nothing is counted."""

    def did(self, told: None) -> None:
        """Nothing was."""
