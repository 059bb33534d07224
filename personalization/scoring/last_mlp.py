"""The MLP of the last block, run only at the places of a batch that are read.

Behind the last attention no token sees another, so what nobody reads there need not be computed. In rows of T tokens of
which P are read this saves (T - P) / T of that MLP, which is two thirds of a Llama block, forward and backward. At the
other places the MLP gives zeros, and norms behind it act on them unread.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedModel

from personalization.errors import DataError
from personalization.scoring.resume import decoder_layers, site_of

WORTH = 0.8
"""The largest share of the places that may be read for it to pay."""

_ODD: WeakSet[nn.Module] = WeakSet()
"""Modules that were seen to give something else than states."""
_FOUND: WeakKeyDictionary[PreTrainedModel, tuple[nn.Module, nn.Module] | None] = WeakKeyDictionary()


def last_mlp(model: PreTrainedModel) -> nn.Module | None:
    """The MLP of a decoder's last block; None where it is not found, or what leaves the block is hooked. Looked for
    once for each model."""
    if model not in _FOUND:
        try:
            block = decoder_layers(model)[-1]
            _FOUND[model] = block, site_of(block, "mlp")
        except DataError:
            _FOUND[model] = None
    found = _FOUND[model]
    return None if found is None or found[0]._forward_hooks else found[1]


@contextmanager
def only_read(mlp: nn.Module | None, places: NDArray[np.int64], shape: tuple[int, ...]) -> Iterator[None]:
    """Inside, the module runs at places alone of a batch [B, T]; `places` [n, 1 + p]: a row, and columns in it.

    Every row runs as many columns as the fullest one reads, so that adapters find their rows. A module that takes or
    gives something else than [B, T, d], or whose output is hooked, runs everywhere.
    """
    read = np.zeros(shape, dtype=bool)
    read[places[:, :1], places[:, 1:]] = True
    most = int(read.sum(axis=1).max())
    if mlp is None or mlp in _ODD or mlp._forward_hooks or most > WORTH * shape[1]:
        yield
        return
    columns = torch.from_numpy(np.argsort(~read, axis=1, kind="stable")[:, :most])
    rows, run, before = torch.arange(shape[0])[:, None], mlp.forward, vars(mlp).get("forward")

    def forward(states: Tensor, *args: Any, **kwargs: Any) -> Any:
        if states.shape[:-1] != shape:
            return run(states, *args, **kwargs)
        at = rows.to(states.device), columns.to(states.device)
        out = run(states[at], *args, **kwargs)
        if not isinstance(out, Tensor):
            _ODD.add(mlp)
            return run(states, *args, **kwargs)
        return out.new_zeros(*shape, out.shape[-1]).index_put(at, out)

    mlp.forward = forward
    try:
        yield
    finally:
        del mlp.forward
        if before is not None:
            mlp.forward = before
