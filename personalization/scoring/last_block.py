"""The last block of a decoder, run only at the places of a batch that are read.

There no token sees what another one's query found, so behind keys and values nothing needs to be computed where nobody
reads: neither the query and the attention (`attention`), nor the map behind it, nor the MLP. In rows of T tokens of
which P are read this saves (T - P) / T of them, some nine tenths of a Llama block, forward and backward. At the other
places they give zeros, and norms behind them act on these unread.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary, WeakSet

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedModel

from personalization.errors import DataError
from personalization.scoring.attention import CausalAttention, Places
from personalization.scoring.resume import decoder_layers, site_of

WORTH = 0.8
"""The largest share of the places that may be read for it to pay."""
ATTENTIONS = ("self_attn", "self_attention", "attention", "attn")
QUERIES, OUTPUTS = ("q_proj", "query", "wq"), ("o_proj", "out_proj", "dense", "c_proj", "wo")
"""Where a block has its attention, and that the map of the queries and the one behind it; others run everywhere."""

_ODD: WeakSet[nn.Module] = WeakSet()
"""Modules that were seen to give something else than states."""
_FOUND: WeakKeyDictionary[PreTrainedModel, tuple[nn.Module, Parts] | None] = WeakKeyDictionary()


class Parts(NamedTuple):
    """Of a block: its MLP, its attention where that is found, and maps of states to states around it."""

    mlp: nn.Module
    attention: nn.Module | None = None
    maps: tuple[nn.Module, ...] = ()


def last_block(model: PreTrainedModel) -> Parts | None:
    """Of a decoder; None where its MLP is not found, or what leaves MLP or block is hooked. Looked for once for each
    model."""
    if model not in _FOUND:
        try:
            block = decoder_layers(model)[-1]
            _FOUND[model] = block, _parts(block)
        except DataError:
            _FOUND[model] = None
    found = _FOUND[model]
    return None if found is None or found[0]._forward_hooks or found[1].mlp._forward_hooks else found[1]


def _parts(block: nn.Module) -> Parts:
    attention = next((getattr(block, name) for name in ATTENTIONS if hasattr(block, name)), None)
    maps = (next((getattr(attention, name) for name in names if hasattr(attention, name)), None)
            for names in (QUERIES, OUTPUTS))  # fmt: skip
    return Parts(site_of(block, "mlp"), attention, tuple(found for found in maps if isinstance(found, nn.Module)))


@contextmanager
def only_read(
    model: PreTrainedModel,
    read: NDArray[np.int64] | None,
    shape: tuple[int, ...],
    attention: CausalAttention | None = None,
) -> Iterator[None]:
    """Inside, the last block runs at the places alone of a batch [B, T] that `read` [n, 1 + p] names, a row and columns
    in it; None: everywhere. Its attention does where that is given."""
    parts = None if read is None else last_block(model)
    at = None if read is None or parts is None else read_places(read, shape, model.device)
    with ExitStack() as stack:
        if parts is not None and at is not None:
            for module in (parts.mlp, *parts.maps):
                stack.enter_context(narrowed(module, at, shape))
            if attention is not None and parts.attention is not None:
                stack.enter_context(attention.only(parts.attention, at))
        yield


def read_places(read: NDArray[np.int64], shape: tuple[int, ...], device: torch.device) -> Places | None:
    """What is read of a batch; None where that is most of it. Every row has as many columns as the fullest one reads,
    so that adapters find their rows."""
    there = np.zeros(shape, dtype=bool)
    there[read[:, :1], read[:, 1:]] = True
    most = int(there.sum(axis=1).max())
    if most > WORTH * shape[1]:
        return None
    columns = torch.from_numpy(np.argsort(~there, axis=1, kind="stable")[:, :most])
    return torch.arange(shape[0])[:, None].to(device), columns.to(device)


@contextmanager
def narrowed(module: nn.Module, at: Places, shape: tuple[int, ...]) -> Iterator[None]:
    """Inside, a module runs at these places alone of a batch [B, T], if it takes and gives [B, T, d]."""
    if module in _ODD:
        yield
        return
    run, before = module.forward, vars(module).get("forward")

    def forward(states: Tensor, *args: Any, **kwargs: Any) -> Any:
        if states.shape[:-1] != shape:
            return run(states, *args, **kwargs)
        out = run(states[at], *args, **kwargs)
        if not isinstance(out, Tensor):
            _ODD.add(module)
            return run(states, *args, **kwargs)
        return out.new_zeros(*shape, out.shape[-1]).index_put(at, out)

    module.forward = forward
    try:
        yield
    finally:
        del module.forward
        if before is not None:
            module.forward = before
