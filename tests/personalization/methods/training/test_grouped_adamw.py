"""AdamW for groups side by side, against torch's for each alone."""

import pytest
import torch

from personalization.methods.training.grouped_adamw import GroupedAdamW

SHAPES = [(3, 2, 5), (3, 4, 2)]


def parameters(seed):
    random = torch.Generator().manual_seed(seed)
    return [torch.randn(*shape, generator=random).requires_grad_() for shape in SHAPES]


@pytest.mark.parametrize("largest", [1e9, 0.5])
def test_each_group_moves_as_it_would_alone(largest):
    """Groups come and go: group 0 in every step, 1 in every second, 2 in the first alone; shares of rows vary."""
    together, alone = parameters(0), parameters(0)
    ours = GroupedAdamW([{"params": together[:1]}, {"params": together[1:]}], 0.1, 0.05)
    single = [[p.detach()[group].clone().requires_grad_() for p in alone] for group in range(3)]
    theirs = [torch.optim.AdamW(own, lr=0.1, weight_decay=0.05) for own in single]
    random = torch.Generator().manual_seed(1)
    for step in range(9):
        present = [group for group in range(3) if step % (1, 2, 99)[group] == 0]
        shares = torch.rand(len(present), generator=random)
        shares /= shares.sum()
        for p in together:
            p.grad = torch.zeros_like(p)
        for share, group in zip(shares, present, strict=True):
            for p, own in zip(together, single[group], strict=True):
                own.grad = torch.randn(own.shape, generator=random)
                p.grad[group] = share * own.grad
            torch.nn.utils.clip_grad_norm_(single[group], largest)
            theirs[group].step()
        ours.clip(torch.tensor(present), shares, largest)
        ours.step(torch.tensor(present))
    for group in range(3):
        for p, own, start in zip(together, single[group], parameters(0), strict=True):
            assert torch.allclose(p[group], own, atol=1e-4)
            assert (p[group] - start[group]).abs().max() > 0.05
