"""Matrix products of a CPU at the rate of the CPU.

PyTorch sends float32 products to MKL, which uses no AVX-512 on AMD processors; oneDNN, which PyTorch also carries, does
(2.2 times the rate on a Zen 5), and is faster on one without AVX-512, too, where there are many rows. Inside
`fast_products()` the products of linear layers go to the library that was faster on this machine, and those of the way
back, which read the same weights the other way round, to the one that was faster there. Both sum in float32, in another
order. Gradients pass through frozen weights only.

oneDNN makes code for every shape that it meets, in half a millisecond, and keeps it, .66 MB a shape, of the latest
1,024; PyTorch keeps a list of its own that holds half of that. Here both keep `KEPT`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from personalization.threads import share_cores

WORTH = 1.05
"""How many times faster oneDNN must be to be used."""
TOKENS, RUNS = 1024, 4
"""Rows of the products that are timed, as a batch has them, and how often."""
CAPACITIES = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")
"""How many shapes oneDNN keeps, and PyTorch; each reads it at its first product. What the user says stands."""
KEPT = 512
"""Shapes, .36 GB of code at most."""
BYTES_OF_SHAPE = 700_000
"""At most, as measured with maps of 64 to 1,536 numbers, with AVX2 and AVX-512."""


class OneDnnProducts(TorchFunctionMode):
    """Sends the float32 products of `linear` and `addmm` on the CPU to oneDNN."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Called by PyTorch in the place of each of its functions."""
        if func is torch.nn.functional.linear and not kwargs and _fits(args[0], args[1]):
            return _routed(args[0], args[1], args[2] if len(args) > 2 else None)
        if func is torch.addmm and not kwargs and args[0].ndim == 1 and _fits(args[1], args[2]):
            return _routed(args[1], args[2].t(), args[0])
        return func(*args, **(kwargs or {}))


def fast_products(device: str) -> AbstractContextManager[object]:
    """A context in which float32 products on this kind of device run at the best rate that was measured.

    Every batch of every pass runs in one, so here the process takes its part of the cores.
    """
    share_cores()
    _keep_few_shapes()
    return OneDnnProducts() if device == "cpu" and onednn_is_faster() else nullcontext()


@cache
def _keep_few_shapes() -> None:
    for name in CAPACITIES:
        os.environ.setdefault(name, str(KEPT))


@cache
def onednn_is_faster(*, backwards: bool = False) -> bool:
    """Measured once in a process, in half a second: a batch through the two maps of an MLP, or back, by each."""
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    x, up, down = torch.ones(TOKENS, 576), torch.ones(1536, 576), torch.ones(576, 1536)
    ways = (torch.matmul, _transposed) if backwards else (torch.nn.functional.linear, _product)
    maps = (down, up) if backwards else (up, down)
    with torch.inference_mode():
        turns = [[_seconds(product, x, *maps) for product in ways] for _ in range(RUNS)]
    mkl, onednn = (min(times) for times in zip(*turns, strict=True))
    return mkl > WORTH * onednn


class _FrozenProduct(torch.autograd.Function):
    """x @ weight.T + bias with a gradient for x alone."""

    @staticmethod
    def forward(context: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        context.save_for_backward(weight)
        return _product(x, weight, bias)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (weight,) = context.saved_tensors
        back = _transposed if onednn_is_faster(backwards=True) else torch.matmul
        return back(gradients[0].contiguous(), weight), None, None


def _routed(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if torch.is_grad_enabled() and x.requires_grad:
        out: Tensor = _FrozenProduct.apply(x, weight, bias)
        return out
    return _product(x, weight, bias)


def _product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x @ weight.T + bias."""
    out: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return out


def _transposed(x: Tensor, weight: Tensor) -> Tensor:
    """x @ weight."""
    return _product(x, weight.t(), None)


def _fits(x: Tensor, weight: Tensor) -> bool:
    return (
        x.dtype == weight.dtype == torch.float32
        and x.device.type == "cpu"
        and x.numel() > 0
        and not (torch.is_grad_enabled() and weight.requires_grad)
    )


def _seconds(product: Callable[..., Tensor], x: Tensor, *weights: Tensor) -> float:
    """Of these products, one after the other."""
    start = time.perf_counter()
    for weight in weights:
        x = product(x, weight)
    return time.perf_counter() - start
