"""Steering as an edit of a forward pass: each prompt with its own user's direction, and a gate that may leave it alone.

With scope `last` the tokens from the prompt's last one on are moved, and with scope `answer` those of the answer alone,
so nothing before them is, and prompts share their beginnings; with scope `all` every token is, and each prompt has a
row of its own. The first token of an answer is told by the prompt's last one: `answer` leaves it alone, and moves what
tells the rest of a label and its end.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from personalization.errors import DataError
from personalization.files import sha256_of
from personalization.methods.steering.moves import EditedTokens, Firings, Move, SteeringVectors, steered
from personalization.scoring.edits import Batch, Sharing

SCOPES = ("all", "answer", "last")
"""Which tokens are moved."""


@cache
def _code() -> str:
    """SHA-256 of the code that moves states: scores of a mended edit are none of the old one's."""
    return "".join(sha256_of(Path(__file__).with_name(name)) for name in ("edit.py", "moves.py"))


@dataclass(frozen=True)
class SteeringEdit:
    """`users` int [n]: whose vectors each prompt has; `gates` float [n]: 0 leaves one alone.

    `blocks`: the layers of the model that is steered; `firings`: what the hooks did in whole passes over these prompts
    and over parts of them.
    """

    blocks: Any
    vectors: SteeringVectors
    move: Move
    users: NDArray[np.int64]
    gates: NDArray[np.floating]
    scope: str = "last"
    prefix: int = 0
    firings: Firings = field(default_factory=Firings, compare=False)
    _running: Firings = field(default_factory=Firings, compare=False)

    def __post_init__(self) -> None:
        if self.scope not in SCOPES:
            raise ValueError(f"scope must be one of {', '.join(SCOPES)}, but got {self.scope!r}")

    @property
    def after(self) -> int:
        """A block's output is moved behind the block: it may be resumed from."""
        return min(self.vectors.layers) - (self.move.site == "mlp")

    @property
    def sharing(self) -> Sharing:
        """Prompts share what is not moved."""
        return "none" if self.scope == "all" else "any"

    @property
    def touched(self) -> NDArray[np.bool_]:
        """Those with an open gate."""
        return np.asarray(self.gates != 0)

    @property
    def key(self) -> str:
        """Digest of vectors, move and gates, and of the code that moves."""
        digest = hashlib.sha256(f"{_code()} {self.vectors.layers} {self.move} {self.scope}".encode())
        for array in (self.vectors.personal[self.users], self.vectors.general, self.vectors.norms, self.gates):
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()

    def only(self, rows: NDArray[np.int64]) -> SteeringEdit:
        """The edit of other prompts."""
        return replace(self, users=self.users[rows], gates=self.gates[rows], _running=Firings())

    def parts(self) -> Sequence[tuple[NDArray[np.int64], SteeringEdit]]:
        """All prompts together."""
        return [(np.arange(len(self.users)), self)]

    @contextmanager
    def applied(self, batch: Batch) -> Iterator[None]:
        """Steer a batch."""
        with steered(self.blocks, self.vectors, self.move, self._tokens(batch)) as done:
            yield
        self._running.add(done)

    def _tokens(self, batch: Batch) -> EditedTokens:
        """The tokens of a batch that move."""
        layout, prompts = batch.layout, batch.prompts
        assert layout is not None
        if self.scope != "all":
            own = layout.places[:, 1 + (self.scope == "answer") :]
            rows, columns = np.repeat(layout.places[:, 0], own.shape[1]), own.reshape(-1)
            owners = np.repeat(prompts, own.shape[1])
        else:
            rows, columns = np.nonzero(layout.branches >= 0)
            owners = prompts[rows]
        return EditedTokens(
            layout.ids.shape[1], rows, columns, self.users[owners], self.gates[owners].astype(np.float32)
        )

    def ran(self, batches: int) -> dict[str, Any]:
        """What the hooks counted; DataError where a layer did not run in every batch."""
        silent = [str(layer) for layer in self.vectors.layers if self._running.calls[layer] < batches]
        told = self._running.told()
        self._running.clear()
        if silent:
            raise DataError(f"the blocks {', '.join(silent)} of this model did not run in every batch; edit others")
        return told

    def did(self, told: Mapping[str, Any]) -> None:
        """Count it."""
        self.firings.add(Firings.of_told(told))
