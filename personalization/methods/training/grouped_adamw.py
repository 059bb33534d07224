"""AdamW (Loshchilov and Hutter 2019) for parameters of many groups that learn side by side, each as if alone.

Parameters are [G, ...], a slice a group. A step moves only the groups that had rows in it: each has its own moments,
its own number of steps, and the clipped gradient of its own rows' mean loss. A dense AdamW would go on moving groups
without rows by their momentum, and one group's large gradient would clip the others'. With one group it is
`torch.optim.AdamW`. A step costs what the groups in it cost, however many there are.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

BETAS = (0.9, 0.999)
EPSILON = 1e-8


class GroupedAdamW(torch.optim.Optimizer):
    """`params` as for torch.optim: dicts with `params`, and `lr` to be set before each step."""

    def __init__(self, params: Iterable[dict[str, Any]], lr: float, weight_decay: float) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def clip(self, present: Tensor, shares: Tensor, largest: float) -> None:
        """Make gradients of groups `present` [n], with `shares` of the rows, those of their own; shorten each."""
        gradients = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
        squares = torch.stack([g[present].flatten(1).square().sum(dim=1) for g in gradients])
        norms = squares.sum(dim=0).sqrt() / shares
        scale = (largest / (norms + 1e-6)).clamp(max=1.0) / shares
        for gradient in gradients:
            gradient[present] *= scale.view(-1, *[1] * (gradient.ndim - 1))

    @torch.no_grad()
    def step(self, present: Tensor) -> None:  # type: ignore[override]
        """Move the groups `present` [n]."""
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self._move(p, present, group["lr"], group["weight_decay"])

    def _move(self, p: Tensor, present: Tensor, rate: float, decay: float) -> None:
        assert p.grad is not None
        state, gradient = self.state[p], p.grad[present]
        if not state:
            state["step"] = torch.zeros(len(p), device=p.device)
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(p), torch.zeros_like(p)
        state["step"][present] += 1
        steps = state["step"][present].view(-1, *[1] * (p.ndim - 1))
        first = state["exp_avg"][present].lerp(gradient, 1 - BETAS[0])
        second = state["exp_avg_sq"][present].lerp(gradient.square(), 1 - BETAS[1])
        state["exp_avg"][present], state["exp_avg_sq"][present] = first, second
        length = (second / (1 - BETAS[1] ** steps)).sqrt() + EPSILON
        p[present] = p[present] * (1 - rate * decay) - rate * first / (1 - BETAS[0] ** steps) / length
