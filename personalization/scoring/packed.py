"""Scoring all candidates of a prompt, and all prompts with a common beginning, in one row.

A row is a tree of tokens: a stem, prompts behind all or the beginning of it, the candidates behind each prompt. A token
sees what lies on its own way from the root (additive float mask, which both eager and sdpa attention take) and has the
position that it would have if that way were the whole text. A sliding window is cut from the mask by these positions.
What all prompts share, the trunk, is computed once; its keys and values stand before every row.

Exact for decoders with full or sliding attention whose positions are given from outside (rotary or learned). The cost
is that of the unique tokens, and of attention inside a row.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from personalization.scoring.attention import causal_attention
from personalization.scoring.candidates import CandidateTree, build_tree, split_candidates
from personalization.scoring.head import Head, read_labels
from personalization.scoring.last_block import only_read
from personalization.scoring.rows import BEHIND_ALL, Layout, Row, Tokens, cut_rows, lay_out, trunk_length

LONGEST_ROW = 2048
"""Prompts share a row only up to this many tokens."""
MOST_NODES = 512
"""Candidates share a tree only up to this many tokens."""


class TrunkLayer(DynamicLayer):
    """Keys and values of the trunk [1, heads, t, d]: put in front of every row of a batch, and never added to."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        super().__init__()
        self.keys, self.values = keys, values
        self.dtype, self.device = keys.dtype, keys.device
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """The trunk and a batch's own keys and values, [B, heads, t + T, d]."""
        rows = len(key_states)
        keys = torch.cat([self.keys.expand(rows, -1, -1, -1), key_states], dim=-2)
        return keys, torch.cat([self.values.expand(rows, -1, -1, -1), value_states], dim=-2)


class Packed:
    """Route of tree-masked rows. `share=False` gives each prompt a row of its own and no trunk; `units` are given rows.

    Very many candidates are cut into several trees, and the rows run once with each, because attention in a row and its
    mask grow with the square of its length.
    """

    same_width = False

    def __init__(
        self,
        model: PreTrainedModel,
        head: Head,
        prompts: Sequence[Tokens],
        candidates: Sequence[Sequence[int]],
        share: bool = True,
        units: list[Row] | None = None,
    ) -> None:
        self.model, self.head, self.prompts = model, head, prompts
        self.columns = split_candidates(candidates, MOST_NODES)
        self.trees = [build_tree([candidates[k] for k in group]) for group in self.columns]
        nodes = max(len(tree.tokens) for tree in self.trees)
        self.trunk = trunk_length(prompts) if share and units is None else 0
        if units is not None:
            self.units = units
        elif share:
            hidden_size = model.config.get_text_config().hidden_size
            self.units = cut_rows(prompts, self.trunk, nodes, hidden_size, LONGEST_ROW)
        else:
            self.units = [Row((i,), 0, len(prompt) + nodes) for i, prompt in enumerate(prompts)]

    def score(self, rows: Sequence[Row], prefix: Cache | None = None) -> Tensor:
        """One forward pass over a batch for each tree: float32 [prompts, K] in the order of the rows' prompts.

        `prefix`: keys and values that every row stands behind, in a route without a trunk.
        """
        layouts = (lay_out(rows, self.prompts, self.trunk, tree) for tree in self.trees)
        return self.read(layouts, sum(len(row.prompts) for row in rows), prefix)

    def read(self, layouts: Iterable[Layout], prompts: int, prefix: Cache | None = None) -> Tensor:
        """`score` of so many prompts that are laid out already, once for each tree."""
        out = torch.empty(prompts, sum(map(len, self.columns)))
        for columns, tree, laid in zip(self.columns, self.trees, layouts, strict=True):
            layout = laid if prefix is None else laid.moved(prefix.get_seq_length())
            past = self._trunk if prefix is None else prefix
            states = self._forward(layout, tree, past, layout.places)
            places = torch.from_numpy(layout.places).to(states.device)
            out[:, columns] = read_labels(self.head, states[places[:, :1], places[:, 1:]], tree)
        return out

    def prepare(self) -> None:
        """Run the trunk now, and not within the first batch."""
        self._trunk  # noqa: B018

    @cached_property
    def _trunk(self) -> Cache | None:
        """Keys and values of the trunk for every layer."""
        if not self.trunk:
            return None
        ids = self.prompts[0][None, : self.trunk].astype(np.int64)
        flat = np.zeros_like(ids)
        cache = DynamicCache()
        self._forward(
            Layout(ids, np.arange(self.trunk)[None], flat, flat + BEHIND_ALL, flat, flat), self.trees[0], cache
        )
        return Cache(layers=[TrunkLayer(layer.keys, layer.values) for layer in cache.layers])

    def _forward(
        self, layout: Layout, tree: CandidateTree, past: Cache | None, read: NDArray[np.int64] | None = None
    ) -> Tensor:
        """Last hidden states [B, T, d]; where it is said which places are read, they hold there."""
        ids, positions, branches, starts, nodes = (
            torch.from_numpy(a).to(self.model.device)
            for a in (layout.ids, layout.positions, layout.branches, layout.starts, layout.nodes)
        )
        before = 0 if past is None else past.get_seq_length()
        width = ids.shape[1]
        visible = torch.ones(width, width, dtype=torch.bool, device=ids.device).tril()
        stem = (branches[:, None] == 0) & (positions[:, None] < starts[..., None])
        visible = visible & (stem | (branches[:, None] == branches[..., None]))
        if len(tree.tokens):
            sees = torch.nn.functional.pad(torch.from_numpy(tree.sees), (1, 0, 1, 0))
            sees[:, 0] = True
            visible &= sees.to(ids.device)[nodes[..., None], nodes[:, None]]
        visible = torch.nn.functional.pad(visible, (before, 0), value=True)
        seen_from = torch.arange(before, device=ids.device).expand(len(ids), -1)
        masks = self._masks(visible, positions, torch.cat([seen_from, positions], 1), layout.positions.max())
        device, shape = self.model.device.type, layout.ids.shape
        with causal_attention(device, width) as attention, only_read(self.model, read, shape, attention):
            return self.model.base_model(
                input_ids=ids,
                position_ids=positions,
                attention_mask=masks,
                past_key_values=past,
                use_cache=past is not None,
            )[0]

    def _masks(self, visible: Tensor, queries: Tensor, keys: Tensor, furthest: int) -> Tensor | dict[str, Tensor]:
        """Additive masks [B, 1, T, t + T]: one, or one for each kind of layer where a window is shorter than a row."""
        window, kinds = attention_kinds(self.model)
        lowest = torch.finfo(self.model.dtype).min

        def additive(seen: Tensor) -> Tensor:
            mask = torch.zeros(seen.shape, dtype=self.model.dtype, device=seen.device)
            return mask.masked_fill_(~seen, lowest)[:, None]

        if window is None or furthest < window:
            return additive(visible)
        near = additive(visible & (queries[..., None] - keys[:, None] < window))
        if kinds == {"sliding_attention"}:
            return near
        return {"full_attention": additive(visible), "sliding_attention": near}


def attention_kinds(model: PreTrainedModel) -> tuple[int | None, set[str]]:
    """(the sliding window in tokens, the kinds of attention layers) of a model, from its config."""
    config = model.config.get_text_config()
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None)
    if kinds is None:
        slides = window is not None and getattr(config, "use_sliding_window", True)
        kinds = ["sliding_attention" if slides else "full_attention"]
    return (window if "sliding_attention" in kinds else None), set(kinds)
