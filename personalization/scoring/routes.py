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

from personalization.scoring.head import DISAGREES, find_head
from personalization.scoring.packed import Packed, attention_kinds
from personalization.scoring.plain import Candidates, PromptOnce, RowPerCandidate
from personalization.scoring.rows import Row, Tokens

log = logging.getLogger(__name__)

TRIAL = 18
"""Tokens in the row of the first trial."""
AGREEMENT = 1e-3
"""Largest difference in nats between a route and one row a candidate, for dtypes of 32 bits and more."""
ROUNDING = 8.0
"""The same for dtypes of 16 bits, as a multiple of what rounding alone does to these scores."""
MOVING = ("dynamic", "longrope")
"""Rotary positions that depend on the length of the row."""


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
    return None


def no_cache(model: PreTrainedModel, _: int) -> str | None:
    """Why a prompt's cache cannot be continued by several candidates."""
    kinds = attention_kinds(model)[1]
    if not kinds <= {"full_attention", "sliding_attention"}:
        return f"its layers are of kinds {', '.join(sorted(kinds))}"
    return None


def steady_length(model: PreTrainedModel) -> int | None:
    """The row length up to which a token's rotary position does not depend on how long its row is; None: always."""
    config = model.config.get_text_config()
    rope = getattr(config, "rope_parameters", None) or {}
    kinds = [rope, *(value for value in rope.values() if isinstance(value, dict))]
    trained = getattr(config, "max_position_embeddings", None)
    lengths = [
        (kind.get("original_max_position_embeddings") or trained or 1) - 1
        for kind in kinds
        if kind.get("rope_type") in MOVING
    ]
    return min(lengths, default=None)


ROUTES: dict[str, tuple[type[Packed] | type[PromptOnce], Callable[[PreTrainedModel, int], str | None]]] = {
    "packed rows": (Packed, no_tree),
    "prompts once": (PromptOnce, no_cache),
}
"""name -> (the route, why it would be wrong), fastest first; one row a candidate serves where none does."""


class Router:
    """Chooses the routes for one model. Its head is found once; a route is tried for every greater length of row."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.head = find_head(model)
        self._tried: dict[str, tuple[int, bool]] = {}
        self._said: set[str] = set()

    def routes(self, prompts: Sequence[Tokens], candidates: Candidates) -> list[tuple[list[int], Route]]:
        """Routes, each with the prompts (their indices) that it serves."""
        longest = max(map(len, candidates)) - 1
        lengths = np.array([len(prompt) + longest for prompt in prompts])
        steady = steady_length(self.model)
        if steady is None or (lengths <= steady).all():
            return [(list(range(len(prompts))), self._choose(prompts, candidates, int(lengths.max())))]
        log.info(
            "one row at a time for rows longer than %d tokens: there the rotary positions of %s change with the length",
            steady,
            self.model.config.model_type,
        )
        chosen: list[tuple[list[int], Route]] = []
        short, long = (np.flatnonzero(lengths <= steady).tolist(), np.flatnonzero(lengths > steady).tolist())
        if short:
            part = [prompts[i] for i in short]
            chosen.append((short, self._choose(part, candidates, int(lengths[short].max()))))
        part = [prompts[i] for i in long]
        return [*chosen, (long, RowPerCandidate(self.model, self.head, part, candidates, alone=True))]

    def _choose(self, prompts: Sequence[Tokens], candidates: Candidates, longest: int) -> Route:
        """The fastest exact route."""
        name = self.model.config.model_type
        if self.head is not None:
            for title, (route, refuses) in ROUTES.items():
                reason = refuses(self.model, longest)
                if reason is None and not self._agrees(title, longest):
                    reason = f"its scores differ from those of one row a candidate on a trial row of {longest} tokens"
                if reason is None:
                    self._say(title)
                    return route(self.model, self.head, prompts, candidates)
                log.info("no %s for %s: %s", title, name, reason)
        log.info("one row a candidate for %s", name)
        return RowPerCandidate(self.model, self.head, prompts, candidates)

    def _say(self, title: str) -> None:
        """Name a route in the log, once."""
        if title not in self._said:
            self._said.add(title)
            log.info("%s for %s", title, self.model.config.model_type)

    def _agrees(self, title: str, longest: int) -> bool:
        """Whether a route gives the scores of one row a candidate on prompts with rows of this length, and of 18."""
        length, agreed = self._tried.get(title, (0, True))
        if agreed and longest > length:
            lengths = {min(longest, TRIAL), longest} if length == 0 else {longest}
            agreed = all(self._trial(title, size) for size in lengths)
            self._tried[title] = (longest, agreed)
        return agreed

    def _trial(self, title: str, longest: int) -> bool:
        """Three prompts, two of them with a common beginning; the longest one is compared."""
        assert self.head is not None
        random = np.random.default_rng(0)
        size, vocabulary = max(1, longest - 2), self.model.config.get_text_config().vocab_size
        text = random.integers(0, vocabulary, size + 1).astype(np.int32)
        prompts = [text[:size], np.append(text[: size // 2], text[size:]), text[-min(size, 3) :]]
        a, b, c, d = (int(i) for i in random.integers(0, vocabulary, 4))
        candidates = [[a], [a, b], [b, c, d], [c]]
        try:
            with torch.inference_mode():
                ours = _first(ROUTES[title][0](self.model, self.head, prompts, candidates))
                reference = RowPerCandidate(self.model, None, prompts, candidates, alone=True)
                theirs = _first(reference)
                allowed = max(AGREEMENT, _rounding(reference, theirs))
        except torch.OutOfMemoryError:
            raise
        except DISAGREES as error:
            log.info("%s for %s: %s", title, self.model.config.model_type, str(error).splitlines()[0])
            return False
        return bool((ours - theirs).abs().max() <= allowed)


def _first(route: Route) -> Tensor:
    """The scores of a route's first prompt."""
    unit = next(unit for unit in route.units if 0 in unit.prompts)
    return route.score([unit])[unit.prompts.index(0)]


def _rounding(reference: Route, scores: Tensor) -> float:
    """What ROUNDING times one unit in the last place of every token's embedding does to these scores, in nats.

    Zero for dtypes of 32 bits. In 16 bits equal routes differ by rounding: by .02 nats in one model, by 1 in another.
    """
    if torch.finfo(reference.model.dtype).bits > 16:
        return 0.0
    coin = torch.Generator().manual_seed(0)

    def nudge(_: object, __: object, states: Tensor) -> Tensor:
        up = torch.randint(0, 2, states.shape, generator=coin).to(states.device)
        return states + states * torch.finfo(states.dtype).eps * (2 * up - 1).to(states.dtype)

    hook = reference.model.get_input_embeddings().register_forward_hook(nudge)
    try:
        return ROUNDING * max(float((_first(reference) - scores).abs().max()) for _ in range(2))
    finally:
        hook.remove()


def _takes_masks_by_kind(model: PreTrainedModel) -> bool:
    """Whether the model takes a mask for each kind of layer, as models with mixed layers do in transformers 5."""
    return "causal_mask_mapping" in inspect.getsource(type(model.base_model).forward)
