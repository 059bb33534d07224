"""Which tokens are computed once: the trunk of all prompts, and the stem of prompts that share a row.

The trunk is what all prompts begin with (an instruction, a list of labels); its keys and values are computed once and
stand before every row. The rest is cut into rows: a row holds a stem once (one user's history), the tokens of each of
its prompts behind the part of the stem with which that prompt begins, and behind each prompt the candidates' tree. So
prompts that continue one another, as those about the items of a history with all earlier items in front, cost one pass
over the longest. With the prompts in lexicographic order, the rows are the cut of least cost by dynamic programming,
O(n * MOST), where the last prompt of a row gives the stem. The cost of a row of w tokens behind a trunk of t is that of
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
BEHIND_ALL = 1 << 40
"""A position that no token has."""


@dataclass(frozen=True)
class Row:
    """Prompts (their indices) with a common stem, the first `stem` tokens of the last one after the trunk.

    `width` tokens are fed. `shared`: with how many tokens of the stem each prompt begins; all where nothing is said.
    """

    prompts: tuple[int, ...]
    stem: int
    width: int
    shared: tuple[int, ...] = ()

    @property
    def begins(self) -> tuple[int, ...]:
        """With how many tokens of the stem each prompt begins."""
        return self.shared or (self.stem,) * len(self.prompts)

    def named(self, names: Sequence[int]) -> Row:
        """The row with the i-th prompt called names[i]."""
        return replace(self, prompts=tuple(names[i] for i in self.prompts))


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
        common, width, best = len(prompts[order[last]]), 0, (np.inf, last)
        for start in range(last, max(-1, last - MOST), -1):
            if start < last:
                common = min(common, shared[start])
            width += len(prompts[order[start]]) - trunk + nodes - (common if start < last else 0)
            if start < last and (common < SHORTEST or width > limit):
                break
            best = min(best, (cost[start] + width + width * (trunk + width) / (6 * hidden_size), start))
        cost.append(best[0])
        first.append(best[1])
    rows, end = [], len(order)
    while end:
        start = first[end]
        begins = [min(shared[i : end - 1]) for i in range(start, end - 1)]
        stem = begins[-1] if begins else 0
        members = tuple(order[start:end])
        own = sum(len(prompts[i]) - trunk + nodes for i in members)
        rows.append(Row(members, stem, own - sum(begins), (*begins, stem)))
        end = start
    return rows[::-1]


@dataclass(frozen=True)
class Layout:
    """A batch of rows as arrays, right-padded: int [B, T] unless said.

    `branches`: 0 in a stem, 1, 2, ... in the prompts behind it, -1 in the padding. `starts`: the position of the first
    token of the prompt's own, before which it sees the stem; in a stem, behind all positions. `nodes`: 0 in a prompt,
    1 + i in candidate node i. `places`: [prompts, 2 + N], the row of each prompt and the columns where it is read.
    """

    ids: NDArray[np.int64]
    positions: NDArray[np.int64]
    branches: NDArray[np.int64]
    starts: NDArray[np.int64]
    nodes: NDArray[np.int64]
    places: NDArray[np.int64]

    def moved(self, by: int) -> Layout:
        """The same at positions that are later by so many tokens."""
        return replace(self, positions=self.positions + by, starts=self.starts + by)


def aligned(width: int) -> int:
    """The width of a batch whose widest row has this one."""
    return width + -width % ALIGNED


def lay_out(rows: Sequence[Row], prompts: Sequence[Tokens], trunk: int, tree: CandidateTree) -> Layout:
    """The arrays of a batch. Prompts come in the order of `rows`; their positions count the trunk."""
    widths = [
        row.stem
        + sum(len(prompts[i]) - trunk - at + len(tree.tokens) for i, at in zip(row.prompts, row.begins, strict=True))
        for row in rows
    ]
    shape = len(rows), aligned(max(widths))
    ids, positions, nodes = (np.zeros(shape, dtype=np.int64) for _ in range(3))
    branches, starts = np.full(shape, -1, dtype=np.int64), np.full(shape, BEHIND_ALL, dtype=np.int64)
    places = []
    extra = np.arange(len(tree.tokens))
    for r, row in enumerate(rows):
        at = row.stem
        ids[r, :at] = prompts[row.prompts[-1]][trunk : trunk + at]
        positions[r, :at] = np.arange(trunk, trunk + at)
        branches[r, :at] = 0
        for branch, (index, begins) in enumerate(zip(row.prompts, row.begins, strict=True), start=1):
            prompt, own = prompts[index], trunk + begins
            end = at + len(prompt) - own
            ids[r, at:end] = prompt[own:]
            positions[r, at:end] = np.arange(own, len(prompt))
            ids[r, end : end + len(extra)] = tree.tokens
            positions[r, end : end + len(extra)] = len(prompt) - 1 + tree.depths
            nodes[r, end : end + len(extra)] = 1 + extra
            branches[r, at : end + len(extra)] = branch
            starts[r, at : end + len(extra)] = own
            places.append(np.concatenate([[r, end - 1], end + extra]))
            at = end + len(extra)
    return Layout(ids, positions, branches, starts, nodes, np.stack(places))
