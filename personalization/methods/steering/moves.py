"""Chameleon steering: hidden states moved along a direction of the user whose question it is.

For an edited token with state h at layer l, unit vectors u (its user's personal direction) and w (the general
direction, shared by all users), the layer's residual norm s, and the gate g of its row:

    additive     h + g s (a_p u + a_g w)
    projection   p - g a_g <p, w> w   with   p = h + g a_p <h, u> u

`projection` with a_p = a_g = 1 is the edit of Chameleon (Zhang et al. 2025, arXiv 2503.01048): the part along the
personal direction doubles, the part along the general one goes. `additive` has strengths in units of the residual norm,
so that they mean the same at every layer. An edit is made at a block's output or at its MLP's output.

Each edited token has its own user, so one batch holds many users, packed or padded as it likes. No other token moves.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from personalization.scoring.resume import site_of

EDITS = ("additive", "projection")


@dataclass(frozen=True)
class SteeringVectors:
    """Directions of U users at these L layers of a model of width d.

    `personal`: float32 [U, L, d], unit length, or zero for a user without a direction; `general`: float32 [L, d], unit
    length or zero; `norms`: float32 [L], the mean length of the residual at each layer's output.
    """

    layers: tuple[int, ...]
    personal: NDArray[np.float32]
    general: NDArray[np.float32]
    norms: NDArray[np.float32]


@dataclass(frozen=True)
class Move:
    """How far states move at the edited layers, and in which way."""

    kind: str = "additive"
    site: str = "block"
    alpha_personal: float = 0.0
    alpha_general: float = 0.0


@dataclass(frozen=True)
class EditedTokens:
    """M tokens of a batch of `width` columns: their places, the user of each (index into the vectors), and its gate."""

    width: int
    rows: NDArray[np.int64]
    columns: NDArray[np.int64]
    users: NDArray[np.int64]
    gates: NDArray[np.float32]


@dataclass
class Firings:
    """What steering did: hook calls and edited tokens a layer, and ||edit|| / ||h|| summed over edited tokens."""

    calls: Counter[int] = field(default_factory=Counter)
    edited: Counter[int] = field(default_factory=Counter)
    tokens: int = 0
    relative: float = 0.0

    def add(self, other: Firings) -> None:
        """Count what another pass did as well."""
        self.calls.update(other.calls)
        self.edited.update(other.edited)
        self.tokens += other.tokens
        self.relative += other.relative

    def told(self) -> dict[str, Any]:
        """As JSON holds it."""
        layers = sorted(self.calls)
        by_layer = [[layer, self.calls[layer], self.edited[layer]] for layer in layers]
        return {"layers": by_layer, "tokens": self.tokens, "relative": self.relative}

    @classmethod
    def of_told(cls, told: Mapping[str, Any]) -> Firings:
        """What `told` gave."""
        calls, edited = ({layer: count[at] for layer, *count in told["layers"]} for at in (0, 1))
        return cls(Counter(calls), Counter(edited), told["tokens"], told["relative"])

    def clear(self) -> None:
        """Begin to count anew."""
        self.calls.clear()
        self.edited.clear()
        self.tokens, self.relative = 0, 0.0

    @property
    def mean_relative_edit(self) -> float:
        """Mean of ||edit|| / ||h|| over edited tokens and layers."""
        return self.relative / self.tokens if self.tokens else 0.0


@contextmanager
def steered(layers: nn.ModuleList, vectors: SteeringVectors, move: Move, tokens: EditedTokens) -> Iterator[Firings]:
    """Steer every forward pass inside. Afterwards the model is what it was, whatever happened inside."""
    firings = Firings(Counter(dict.fromkeys(vectors.layers, 0)), Counter(dict.fromkeys(vectors.layers, 0)))
    on = np.flatnonzero(tokens.gates != 0)
    handles = []
    try:
        for place, layer in enumerate(vectors.layers):
            hook = _mover(vectors, move, place, tokens, on, firings)
            handles.append(site_of(layers[layer], move.site).register_forward_hook(hook, prepend=True))
        yield firings
    finally:
        for handle in handles:
            handle.remove()


def _mover(
    vectors: SteeringVectors, move: Move, place: int, tokens: EditedTokens, on: NDArray[np.int64], firings: Firings
) -> Any:
    """The forward hook of one of the layers."""
    layer, gates = vectors.layers[place], tokens.gates[on, None]
    distinct, of = np.unique(tokens.users[on], return_inverse=True)
    users, general, norm = vectors.personal[distinct, place], vectors.general[place], float(vectors.norms[place])

    def hook(_: nn.Module, __: Any, output: Any) -> Any:
        h = output[0] if isinstance(output, tuple) else output
        firings.calls[layer] += 1
        if len(on):
            at = torch.from_numpy(tokens.rows[on] * tokens.width + tokens.columns[on]).to(h.device)
            u, w, g, own = (torch.from_numpy(np.ascontiguousarray(a)).to(h.device) for a in (users, general, gates, of))
            flat = h.reshape(-1, h.shape[-1])
            before = flat[at].float()
            after = moved(before, u[own], w, move, g, norm)
            h = flat.index_copy(0, at, after.to(h.dtype)).view_as(h)
            firings.tokens += len(on)
            firings.edited[layer] += len(on)
            firings.relative += float(((after - before).norm(dim=1) / before.norm(dim=1)).sum())
        return (h, *output[1:]) if isinstance(output, tuple) else h

    return hook


def moved(h: Tensor, u: Tensor, w: Tensor, move: Move, gates: Tensor, norm: float) -> Tensor:
    """The edited states [M, d] of states h [M, d] with personal directions u [M, d] and the general direction w [d]."""
    if move.kind == "additive":
        return h + gates * norm * (move.alpha_personal * u + move.alpha_general * w)
    if move.kind == "projection":
        p = h + gates * move.alpha_personal * (h * u).sum(dim=1, keepdim=True) * u
        return p - gates * move.alpha_general * (p * w).sum(dim=1, keepdim=True) * w
    raise ValueError(f"a move must be one of {', '.join(EDITS)}, but got {move.kind!r}")


def cosine_gate(states: NDArray[np.floating], directions: NDArray[np.floating]) -> NDArray[np.float64]:
    """Agreement of states [n, d] with their users' directions [n, d], in [-1, 1]; 0 where either is zero."""
    lengths = np.linalg.norm(states, axis=1) * np.linalg.norm(directions, axis=1)
    products = (states * directions).sum(axis=1)
    return np.asarray(np.divide(products, lengths, out=np.zeros(len(states)), where=lengths > 0))


def product_gate(personal: NDArray[np.floating], general: NDArray[np.floating]) -> NDArray[np.float64]:
    """||p|| ||g|| cos(p, g) of scaled directions p [n, d] and g [d], as the second report behind this project has it.

    Its threshold there is 0.022. It does not look at the question; and where alpha_general is negative it opens only
    for users whose direction disagrees with the general one.
    """
    return np.asarray(personal @ general, dtype=np.float64)
