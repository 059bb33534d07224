"""Which tokens are computed once: the trunk of all prompts, and the stem of prompts that share a row.

The trunk is what all prompts begin with (an instruction, a list of labels); its keys and values are computed once and
stand before every row. The rest is cut into rows: a row holds a stem once (one user's history), behind it each of its
prompts' own tokens, and behind each prompt the candidates' tree. With the prompts in lexicographic order, the rows are
the cut of least cost by dynamic programming, O(n * MOST). The cost of a row of w tokens behind a trunk of t is that of
its matrix products with the weights and of its attention, in tokens: w + w (t + w) / (6 d) for a block of width d
(12 d^2 weights, 24 d^2 operations a token; 4 d operations a pair of tokens).

This file knows token ids and no model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from personalization.scoring.candidates import CandidateTree

Tokens = NDArray[np.int32]

SHORTEST = 8
"""The shortest stem worth a row of its own."""
MOST = 64
"""The largest number of prompts in a row."""
ALIGNED = 4
"""Batches have a multiple of this width: matrix libraries prepare, and keep, code for each shape that they meet."""


@dataclass(frozen=True)
class Row:
    """Prompts (their indices) that share their first `stem` tokens after the trunk; `width` tokens are fed."""

    prompts: tuple[int, ...]
    stem: int
    width: int


def common_prefix(a: Tokens, b: Tokens) -> int:
    """How many leading tokens two prompts share; never all of one, so that something is left to read after."""
    size = min(len(a), len(b)) - 1
    differ = np.flatnonzero(a[:size] != b[:size])
    return int(differ[0]) if len(differ) else size


def trunk_length(prompts: Sequence[Tokens]) -> int:
    """How many leading tokens all prompts share; 0 for a single prompt, which shares with nobody."""
    if len(prompts) < 2:
        return 0
    return min(common_prefix(prompts[0], other) for other in prompts[1:])


def cut_rows(prompts: Sequence[Tokens], trunk: int, nodes: int, hidden_size: int, limit: int) -> list[Row]:
    """The rows of least cost. `nodes`: tokens of the candidates' tree; `limit`: no shared row gets longer than this."""
    order = sorted(range(len(prompts)), key=lambda i: prompts[i][trunk:].astype(">i4").tobytes())
    shared = [common_prefix(prompts[a][trunk:], prompts[b][trunk:]) for a, b in pairwise(order)]
    cost, first = [0.0], [0]
    for last in range(len(order)):
        stem, own, best = 0, 0, (np.inf, last)
        for start in range(last, max(-1, last - MOST), -1):
            own += len(prompts[order[start]]) - trunk + nodes
            if start < last:
                stem = shared[start] if start == last - 1 else min(stem, shared[start])
            width = own - (last - start) * stem
            if start < last and (stem < SHORTEST or width > limit):
                break
            best = min(best, (cost[start] + width + width * (trunk + width) / (6 * hidden_size), start))
        cost.append(best[0])
        first.append(best[1])
    rows, end = [], len(order)
    while end:
        start = first[end]
        stem = min(shared[start : end - 1], default=0)
        members = tuple(order[start:end])
        own = sum(len(prompts[i]) - trunk + nodes for i in members)
        rows.append(Row(members, stem, own - (len(members) - 1) * stem))
        end = start
    return rows[::-1]


@dataclass(frozen=True)
class Layout:
    """A batch of rows as arrays, right-padded: int [B, T] unless said.

    `branches`: 0 in a stem, 1, 2, ... in the prompts behind it, -1 in the padding. `nodes`: 0 in a prompt, 1 + i in
    candidate node i. `places`: [prompts, 2 + N], the row of each prompt and the columns where it is read.
    """

    ids: NDArray[np.int64]
    positions: NDArray[np.int64]
    branches: NDArray[np.int64]
    nodes: NDArray[np.int64]
    places: NDArray[np.int64]

    def moved(self, by: int) -> Layout:
        """The same at positions that are later by so many tokens."""
        return replace(self, positions=self.positions + by)


def lay_out(rows: Sequence[Row], prompts: Sequence[Tokens], trunk: int, tree: CandidateTree) -> Layout:
    """The arrays of a batch. Prompts come in the order of `rows`; their positions count the trunk."""
    widths = [
        row.stem + sum(len(prompts[i]) - trunk - row.stem + len(tree.tokens) for i in row.prompts) for row in rows
    ]
    shape = len(rows), max(widths) + -max(widths) % ALIGNED
    ids, positions, nodes = (np.zeros(shape, dtype=np.int64) for _ in range(3))
    branches = np.full(shape, -1, dtype=np.int64)
    places = []
    extra = np.arange(len(tree.tokens))
    for r, row in enumerate(rows):
        own = trunk + row.stem
        ids[r, : row.stem] = prompts[row.prompts[0]][trunk:own]
        positions[r, : row.stem] = np.arange(trunk, own)
        branches[r, : row.stem] = 0
        at = row.stem
        for branch, index in enumerate(row.prompts, start=1):
            prompt = prompts[index]
            end = at + len(prompt) - own
            ids[r, at:end] = prompt[own:]
            positions[r, at:end] = np.arange(own, len(prompt))
            ids[r, end : end + len(extra)] = tree.tokens
            positions[r, end : end + len(extra)] = len(prompt) - 1 + tree.depths
            nodes[r, end : end + len(extra)] = 1 + extra
            branches[r, at : end + len(extra)] = branch
            places.append(np.concatenate([[r, end - 1], end + extra]))
            at = end + len(extra)
    return Layout(ids, positions, branches, nodes, np.stack(places))
