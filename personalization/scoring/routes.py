"""Choosing how a model is scored: the fastest route that is exact for its architecture.

What a route cannot serve is read from the config. A route that the config allows is then tried on a few tokens against
one row a candidate, so that an architecture nobody here has heard of cannot be scored wrongly in silence.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from personalization.scoring.candidates import CandidateTree, build_tree
from personalization.scoring.head import find_head
from personalization.scoring.packed import Packed, attention_kinds
from personalization.scoring.plain import PromptOnce, RowPerCandidate
from personalization.scoring.rows import Row, Tokens

log = logging.getLogger(__name__)

AGREEMENT = {torch.float32: 1e-3, torch.float64: 1e-3}
"""Largest difference in nats between a route and one row a candidate; HALF for dtypes of 16 bits."""
HALF = 0.5


class Route(Protocol):
    """How the candidates of many prompts are scored."""

    model: PreTrainedModel
    units: list[Row]
    """What cannot be divided between batches; together they hold every prompt once."""
    same_width: bool
    """Whether the units of a batch must have one width."""

    def score(self, rows: Sequence[Row]) -> Tensor:
        """float32 [prompts, K] on the CPU, in the order of the rows' prompts."""


def no_tree(model: PreTrainedModel, longest: int) -> str | None:
    """Why rows of tree-masked tokens would be wrong for this model and this longest row."""
    config = model.config.get_text_config()
    window, kinds = attention_kinds(model)
    attention = getattr(config, "attn_config", None)
    if not kinds <= {"full_attention", "sliding_attention"}:
        return f"its layers are of kinds {', '.join(sorted(kinds))}"
    if hasattr(config, "attention_layers"):
        return "some of its layers see a window of the row"
    if config.model_type == "bloom" or getattr(config, "alibi", False) or getattr(attention, "alibi", False):
        return "its positions are ALiBi biases, counted along the row"
    if "position_ids" not in inspect.signature(model.base_model.forward).parameters:
        return "it takes no position_ids"
    if len(kinds) > 1 and window is not None and longest > window and not _takes_masks_by_kind(model):
        return f"its window of {window} is shorter than a row of {longest} tokens, and it takes one mask for all layers"
    return moving_positions(model, longest)


def no_cache(model: PreTrainedModel, longest: int) -> str | None:
    """Why a prompt's cache cannot be continued by several candidates."""
    _, kinds = attention_kinds(model)
    if not kinds <= {"full_attention", "sliding_attention"}:
        return f"its layers are of kinds {', '.join(sorted(kinds))}"
    return moving_positions(model, longest)


def moving_positions(model: PreTrainedModel, longest: int) -> str | None:
    """Whether the rotary positions of a token depend on how long its row is."""
    config = model.config.get_text_config()
    rope = getattr(config, "rope_parameters", None) or {}
    kinds = {rope.get("rope_type")} | {v.get("rope_type") for v in rope.values() if isinstance(v, dict)}
    trained = rope.get("original_max_position_embeddings") or getattr(config, "max_position_embeddings", None) or 0
    if kinds & {"dynamic", "longrope"} and longest > trained:
        return f"its rotary positions change in rows longer than {trained} tokens"
    return None


ROUTES: dict[str, tuple[type[Packed] | type[PromptOnce], Callable[[PreTrainedModel, int], str | None]]] = {
    "packed rows": (Packed, no_tree),
    "prompts once": (PromptOnce, no_cache),
}
"""name -> (the route, why it would be wrong), fastest first; one row a candidate serves where none does."""


class Router:
    """Chooses the route for one model. `head` is found, and each route tried, once."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.head = find_head(model)
        self._tried: dict[str, bool] = {}

    def choose(self, prompts: Sequence[Tokens], tree: CandidateTree) -> Route:
        """The fastest exact route for these prompts and candidates."""
        longest = max(map(len, prompts)) + int(tree.depths.max(initial=0))
        name = self.model.config.model_type
        if self.head is not None:
            for title, (route, refuses) in ROUTES.items():
                reason = refuses(self.model, longest)
                if reason is None and not self._agrees(title):
                    reason = "its scores differ from those of one row a candidate on a few tokens"
                if reason is None:
                    log.debug("%s for %s", title, name)
                    return route(self.model, self.head, prompts, tree)
                log.info("no %s for %s: %s", title, name, reason)
        log.info("one row a candidate for %s", name)
        return RowPerCandidate(self.model, self.head, prompts, tree)

    def _agrees(self, title: str) -> bool:
        """Whether a route gives the scores of one row a candidate for three short prompts."""
        if title not in self._tried:
            assert self.head is not None
            random = np.random.default_rng(0)
            vocabulary = self.model.config.get_text_config().vocab_size
            shared = random.integers(0, vocabulary, 12)
            prompts = [
                np.concatenate([shared[:end], random.integers(0, vocabulary, own)]).astype(np.int32)
                for end, own in ((12, 3), (12, 3), (3, 12))
            ]
            a, b, c, d = (int(i) for i in random.integers(0, vocabulary, 4))
            tree = build_tree([[a], [a, b], [b, c, d], [c]])
            route = ROUTES[title][0](self.model, self.head, prompts, tree)
            plain = RowPerCandidate(self.model, None, prompts, tree)
            with torch.inference_mode():
                ours, theirs = (_in_order(r) for r in (route, plain))
            limit = AGREEMENT.get(self.model.dtype, HALF)
            self._tried[title] = bool((ours - theirs).abs().max() <= limit)
        return self._tried[title]


def _in_order(route: Route) -> Tensor:
    scores = {}
    for unit in route.units:
        for index, row in zip(unit.prompts, route.score([unit]), strict=True):
            scores[index] = row
    return torch.stack([scores[i] for i in sorted(scores)])


def _takes_masks_by_kind(model: PreTrainedModel) -> bool:
    """Whether the model takes a mask for each kind of layer, as models with mixed layers do in transformers 5."""
    return "causal_mask_mapping" in inspect.getsource(type(model.base_model).forward)
