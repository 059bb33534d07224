"""Attention of rows in which no token sees a later one, without most of what nobody sees or reads.

With a mask PyTorch's CPU kernel multiplies every query with every key. Here chunk after chunk of queries meets the keys
up to its last one: of a row of n chunks (n + 1) / 2n of the work, equal but for the order of the sums.
What a mask of a row hides before that place, of other prompts, is still multiplied. In a block of which few places are
read (`last_block`) only the queries there meet the keys.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

CHUNK = 128
"""Queries at most; with 64 the way back adds up more gradients of keys than it saves, with 256 it takes .1 longer."""

Places = tuple[Tensor, Tensor]
"""(rows [B, 1], columns [B, P]) of a batch [B, T]."""


class CausalAttention(TorchFunctionMode):
    """For passes whose masks [B, 1, T, t + T] hide all later tokens, on a CPU."""

    def __init__(self) -> None:
        super().__init__()
        self._at: Places | None = None

    @contextmanager
    def only(self, module: nn.Module, at: Places) -> Iterator[None]:
        """Inside, the queries of this module's attention meet keys at these places alone; zeros at the others."""
        before = module.register_forward_pre_hook(lambda *_: setattr(self, "_at", at))
        after = module.register_forward_hook(lambda *_: setattr(self, "_at", None), always_call=True)
        try:
            yield
        finally:
            before.remove()
            after.remove()

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Called by PyTorch in the place of each of its functions."""
        given = kwargs or {}
        if func is torch.nn.functional.scaled_dot_product_attention and len(args) == 3:
            mask = given.get("attn_mask")
            if mask is not None and not given.get("dropout_p"):
                if self._at is not None and args[0].shape[:-1:2] == mask.shape[:-1:2]:
                    return _at_places(func, self._at, *args, **given)
                if args[0].shape[-2] > CHUNK:
                    return _in_chunks(func, *args, **given)
        return func(*args, **given)


def causal_attention(device: str, width: int) -> AbstractContextManager[CausalAttention | None]:
    """A context for such passes of rows of so many tokens on this kind of device; None where they run as they are:
    in short rows little is saved, and a small model pays a twentieth for a mode that looks at every function."""
    return CausalAttention() if device == "cpu" and width > CHUNK else nullcontext()


def _at_places(
    attention: Callable[..., Tensor], at: Places, queries: Tensor, keys: Tensor, values: Tensor, attn_mask: Tensor,
    **how: Any,
) -> Tensor:  # fmt: skip
    rows, columns = at
    some = queries.transpose(1, 2)[rows, columns].transpose(1, 2)
    found = attention(some, keys, values, attn_mask=attn_mask[:, 0][rows, columns][:, None], **how).transpose(1, 2)
    out = found.new_zeros(len(queries), queries.shape[-2], *found.shape[2:])
    return out.index_put((rows, columns), found).transpose(1, 2)


def _in_chunks(
    attention: Callable[..., Tensor], queries: Tensor, keys: Tensor, values: Tensor, attn_mask: Tensor, **how: Any
) -> Tensor:
    count, done = queries.shape[-2], []
    before = keys.shape[-2] - count
    for start, end in pairwise(np.linspace(0, count, 1 + -(-count // CHUNK)).round().astype(int).tolist()):
        seen = before + end
        some = (queries[..., start:end, :], keys[..., :seen, :], values[..., :seen, :])
        done.append(attention(*some, attn_mask=attn_mask[..., start:end, :seen], **how))
    return torch.cat(done, dim=-2)
