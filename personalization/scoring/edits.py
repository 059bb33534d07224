"""What may change a forward pass. Scoring knows of LoRA, prefixes and steering no more than this.

Edits are applied together, the lowest stage's first. None touches a weight: they are hooks, and keys and values to run
behind, and a model outside `applied` is what it was, bit for bit.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from personalization.scoring.rows import Layout

Sharing = Literal["any", "none"] | Sequence[Hashable]
"""Which prompts may share a row: any, none, or those with an equal entry here, one entry a prompt."""


class Shelf(NamedTuple):
    """Where states are stored, and all else that they depend on (JSON-able), above all the weights."""

    folder: Path
    identity: Mapping[str, Any] | str


class Batch(NamedTuple):
    """A batch of B rows. `prompts` int [b]: its prompts, in the order of scores; `leaders` int [B]: one of each row.

    `layout`: where tokens stand, of a causal model's rows; an encoder's rows are single texts.
    """

    prompts: NDArray[np.int64]
    leaders: NDArray[np.int64]
    layout: Layout | None


class Edit(Protocol):
    """One change of a forward pass, for n prompts.

    `after`: the last layer whose output it leaves as it was, -1 where there is none; `prefix`: tokens that it puts in
    front of every row; `key`: all that it depends on, hashable and JSON-able; `touched` bool [n]: the prompts that it
    moves; `sharing`: which prompts it lets share a row.
    """

    @property
    def after(self) -> int: ...

    @property
    def prefix(self) -> int: ...

    @property
    def key(self) -> str: ...

    @property
    def touched(self) -> NDArray[np.bool_]: ...

    @property
    def sharing(self) -> Sharing: ...

    def only(self, rows: NDArray[np.int64]) -> Edit:
        """The edit of other prompts, each as one of these was edited, [m]."""

    def parts(self) -> Sequence[tuple[NDArray[np.int64], Edit]]:
        """Prompts that cannot stand in one batch, each list with the edit for it."""

    def applied(self, batch: Batch) -> AbstractContextManager[Any]:
        """Run one batch under the edit; what is yielded, if anything, are keys and values to run behind."""

    def ran(self, batches: int) -> Any:
        """What it did in a whole pass of so many batches, which has ended, JSON-able; DataError where it did not
        happen."""

    def did(self, told: Any) -> None:
        """Count what it did in a pass, this one's or an earlier one's whose scores were stored."""


def shared(edits: Sequence[Edit], n: int) -> Sharing:
    """The sharing that all edits allow."""
    kinds = [edit.sharing for edit in edits if edit.sharing != "any"]
    if "none" in kinds:
        return "none"
    return list(zip(*kinds, strict=True)) if kinds and n else "any"
