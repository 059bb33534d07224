"""The candidates of a prompt as a tree of tokens.

Candidates that begin with the same tokens share them, and no candidate's last token is in the tree, because nothing is
read after it. So single-token candidates cost nothing beyond the prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class CandidateTree:
    """K candidates as N fed tokens (nodes; a parent stands before its children).

    `tokens`, `depths`: int [N]; the first token after the prompt has depth 1. `sees`: bool [N, N], node attends to
    node (ancestors and itself). Places are what is read: place 0 is the prompt's last position, place 1 + i is node i.
    `targets`: int [1 + N, C], the tokens that may follow a place, padded with 0. Candidate k has `lengths[k]` tokens;
    its j-th is `targets[places[k, j], slots[k, j]]`.
    """

    tokens: Ints
    depths: Ints
    sees: NDArray[np.bool_]
    targets: Ints
    places: Ints
    slots: Ints
    lengths: Ints

    def candidate(self, k: int) -> list[int]:
        """The tokens of candidate k."""
        steps = range(self.lengths[k])
        return [int(self.targets[self.places[k, j], self.slots[k, j]]) for j in steps]

    def chains(self) -> list[list[int]]:
        """The nodes on the way to each leaf of the tree, from the prompt on."""
        parents = {int(i) for row in self.sees for i in np.flatnonzero(row)[:-1]}
        return [np.flatnonzero(self.sees[i]).tolist() for i in range(len(self.tokens)) if i not in parents]


def build_tree(candidates: Sequence[Sequence[int]]) -> CandidateTree:
    """The tree of candidates given as token ids, none of them empty."""
    nodes: dict[tuple[int, ...], int] = {}
    children: list[dict[int, int]] = [{}]
    longest = max(map(len, candidates))
    places = np.zeros((len(candidates), longest), dtype=np.int64)
    slots = np.zeros_like(places)
    for k, candidate in enumerate(candidates):
        for j, token in enumerate(candidate):
            prefix = tuple(candidate[:j])
            if prefix and prefix not in nodes:
                nodes[prefix] = len(nodes)
                children.append({})
            places[k, j] = place = 1 + nodes[prefix] if prefix else 0
            slots[k, j] = children[place].setdefault(token, len(children[place]))
    sees = np.zeros((len(nodes), len(nodes)), dtype=np.bool_)
    for prefix, node in nodes.items():
        for end in range(1, len(prefix) + 1):
            sees[node, nodes[prefix[:end]]] = True
    targets = np.zeros((len(children), max(map(len, children))), dtype=np.int64)
    for place, following in enumerate(children):
        targets[place, : len(following)] = list(following)
    return CandidateTree(
        tokens=np.array([prefix[-1] for prefix in nodes], dtype=np.int64),
        depths=np.array([len(prefix) for prefix in nodes], dtype=np.int64),
        sees=sees,
        targets=targets,
        places=places,
        slots=slots,
        lengths=np.array([len(c) for c in candidates], dtype=np.int64),
    )


def split_candidates(candidates: Sequence[Sequence[int]], most: int) -> list[list[int]]:
    """The candidates (their indices) in groups whose trees have about `most` nodes, those that begin alike together."""
    groups: list[list[int]] = [[]]
    nodes: set[tuple[int, ...]] = set()
    for k in sorted(range(len(candidates)), key=lambda k: list(candidates[k])):
        fed = {tuple(candidates[k][:j]) for j in range(1, len(candidates[k]))}
        if groups[-1] and len(nodes | fed) > most:
            groups.append([])
            nodes = set()
        groups[-1].append(k)
        nodes |= fed
    return groups
