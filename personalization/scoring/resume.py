"""Re-running only the layers above K.

What nothing up to layer K changes between two trials is computed once: the output of layer K. `output_of` runs a batch
up to it and no further; `resumed_after` runs the same batch again from it. The layers up to K give back what was noted
instead of running, so the model's own forward pass still makes masks and positions, and hooks on layer K still see its
output. The result is equal bit for bit as long as the batch is the same. It costs (N - K - 1) / N of a full pass.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from personalization.errors import DataError

log = logging.getLogger(__name__)

SITES = ("block", "mlp")
MLPS = ("mlp", "feed_forward", "ffn", "fc2")
"""Where the MLP of a block is found; its output is the `mlp` site."""


def site_of(layer: nn.Module, site: str) -> nn.Module:
    """The module of a block whose output is this site."""
    if site == "block":
        return layer
    if site != "mlp":
        raise ValueError(f"site must be one of {', '.join(SITES)}, but got {site!r}")
    for name in MLPS:
        if hasattr(layer, name):
            found: nn.Module = getattr(layer, name)
            return found
    raise DataError(f"{type(layer).__name__} has no MLP under the names {', '.join(MLPS)}; use site: block")


def decoder_layers(model: PreTrainedModel, path: str | None = None) -> nn.ModuleList:
    """The blocks of a decoder, in order: the one list of modules as long as the config says, or the one at `path`."""
    depth = model.config.get_text_config().num_hidden_layers
    if path is not None:
        try:
            found = model.get_submodule(path)
        except AttributeError:
            raise DataError(f"model has no module {path!r}; give the path of its list of blocks") from None
        if not isinstance(found, nn.ModuleList) or len(found) != depth:
            raise DataError(f"module {path!r} is no list of the model's {depth} blocks")
        return found
    lists = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == depth
    }
    if len(lists) != 1:
        names = ", ".join(lists) or "none"
        raise DataError(
            f"{model.config.model_type}: {names} of its modules could be its {depth} blocks; name one with model.blocks"
        )
    return next(iter(lists.values()))


@contextmanager
def captured_output(layer: nn.Module) -> Iterator[list[Tensor]]:
    """A list that receives the hidden states [B, T, d] that leave a block, at every forward pass."""
    seen: list[Tensor] = []
    handle = layer.register_forward_hook(lambda _, __, output: seen.append(hidden(output)))
    try:
        yield seen
    finally:
        handle.remove()


class _LeftBlock(Exception):
    """Ends a forward pass at a block's output."""

    def __init__(self, states: Tensor) -> None:
        super().__init__()
        self.states = states


def output_of(layer: nn.Module, run: Callable[[], object]) -> Tensor:
    """The hidden states [B, T, d] that leave a block when `run` runs the model, which ends there.

    They are what the block gives before any other hook on it: hooks see it again where the model is resumed from it.
    """

    def leave(_: nn.Module, __: object, output: Any) -> None:
        raise _LeftBlock(hidden(output))

    handle = layer.register_forward_hook(leave, prepend=True)
    try:
        run()
    except _LeftBlock as left:
        return left.states
    finally:
        handle.remove()
    raise RuntimeError(f"the pass did not come to its {type(layer).__name__}")


@contextmanager
def resumed_after(layers: nn.ModuleList, k: int, states: Tensor, parts: int) -> Iterator[None]:
    """Run the model from the output of layer `k`. `parts`: of the tuples that its blocks return; 0: no tuples."""
    given: Any = (states, *[None] * (parts - 1)) if parts else states
    skipped = layers[: k + 1]
    for layer in skipped:
        layer.forward = lambda *_, **__: given
    try:
        yield
    finally:
        for layer in skipped:
            del layer.forward


def hidden(output: Any) -> Tensor:
    """The hidden states in what a block or a model returns; some return a tuple."""
    states: Tensor = output if isinstance(output, Tensor) else output[0]
    return states


_TRIED: WeakKeyDictionary[nn.ModuleList, dict[int, bool]] = WeakKeyDictionary()
TRIED_ON = 8
"""Tokens of the pass on which it is tried whether a model may be resumed."""
TOLERANCE = 1e-3
"""Largest difference in the states of that pass, as a share of the largest of them."""


def may_resume(model: PreTrainedModel, layers: nn.ModuleList, k: int, parts: int) -> bool:
    """Whether a model gives from the output of layer `k` what it gives from the beginning; tried once for each layer.

    It does not where blocks hand on more than states, as T5's first one does with the position bias of all.
    """
    tried = _TRIED.setdefault(layers, {})
    if k not in tried:
        ids = torch.arange(1, TRIED_ON + 1, device=model.device)[None] % model.config.get_text_config().vocab_size

        def run() -> Tensor:
            return hidden(model.base_model(input_ids=ids))

        with torch.inference_mode():
            whole, states = run(), output_of(layers[k], run)
            with resumed_after(layers, k, states, parts):
                difference = (run() - whole).abs().max()
        tried[k] = bool(difference <= TOLERANCE * whole.abs().max())
        if not tried[k]:
            log.info("block %d hands on more than states: the whole model runs every time", k)
    return tried[k]


_PARTS: WeakKeyDictionary[nn.ModuleList, int] = WeakKeyDictionary()


def parts_returned(model: PreTrainedModel, layers: nn.ModuleList) -> int:
    """How many parts the tuples have that the blocks of a model return; 0 where they return states alone.

    Looked at once for each model.
    """
    if layers not in _PARTS:
        _PARTS[layers] = _parts_seen(model, layers)
    return _PARTS[layers]


def _parts_seen(model: PreTrainedModel, layers: nn.ModuleList) -> int:
    seen: list[int] = []
    handle = layers[0].register_forward_hook(
        lambda _, __, output: seen.append(len(output) if isinstance(output, tuple) else 0)
    )
    try:
        with torch.inference_mode():
            model.base_model(input_ids=torch.tensor([[1, 2]], device=model.device))
    finally:
        handle.remove()
    return seen[0]
