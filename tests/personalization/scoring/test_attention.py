from contextlib import nullcontext

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from personalization.scoring import attention
from personalization.scoring.attention import causal_attention


@pytest.fixture
def given():
    """Queries, keys, values and a mask of a row of 300 tokens behind 40, of which each sees some of those before it."""
    torch.manual_seed(0)
    queries, keys, values = (torch.randn(2, 3, n, 8, dtype=torch.float64) for n in (300, 340, 340))
    visible = (torch.rand(2, 1, 300, 340) < 0.7).tril(40) | torch.eye(300, 340, dtype=torch.bool).roll(40, 1)
    mask = torch.zeros(visible.shape, dtype=torch.float64).masked_fill(~visible, torch.finfo(torch.float32).min)
    return queries, keys, values, mask


@pytest.fixture
def multiplied(monkeypatch):
    """How many pairs of a query and a key were multiplied."""
    pairs, real = [], attention._in_chunks

    def counted(attend, *args, **kwargs):
        def noted(queries, keys, *rest, **given):
            pairs.append(queries.shape[-2] * keys.shape[-2])
            return attend(queries, keys, *rest, **given)

        return real(noted, *args, **kwargs)

    monkeypatch.setattr(attention, "_in_chunks", counted)
    return pairs


def test_chunks_give_what_the_whole_gives_and_its_gradients(given, multiplied):
    *three, mask = given
    found = []
    for device in ("cuda", "cpu"):  # the context of the first leaves everything as it is
        inputs = [tensor.clone().requires_grad_() for tensor in three]
        with causal_attention(device, 300):
            out = scaled_dot_product_attention(*inputs, attn_mask=mask, scale=0.3)
        (out * torch.arange(out.numel(), dtype=out.dtype).view_as(out)).sum().backward()
        found.append([out.detach(), *(tensor.grad for tensor in inputs)])
    for whole, chunks in zip(*found, strict=True):
        assert torch.allclose(whole, chunks, rtol=1e-9, atol=1e-9)
    assert multiplied == [100 * 140, 100 * 240, 100 * 340]


def test_without_a_mask_with_dropout_and_in_short_rows_nothing_is_cut(given, multiplied):
    queries, keys, values, mask = given
    with causal_attention("cpu", 300):
        scaled_dot_product_attention(queries, keys, values)
        scaled_dot_product_attention(queries, keys, values, attn_mask=mask, dropout_p=0.1)
        scaled_dot_product_attention(queries[:, :, :128], keys, values, attn_mask=mask[:, :, :128])
    with causal_attention("cpu", 128):
        scaled_dot_product_attention(queries, keys, values, attn_mask=mask)
    assert multiplied == []


class Attention(torch.nn.Module):
    """One that is run with queries, keys and values."""

    def forward(self, *three, **given):
        return scaled_dot_product_attention(*three, **given)


def test_in_one_module_queries_meet_keys_where_they_are_read_alone(given, multiplied):
    *three, mask = given
    columns = torch.tensor([[3, 170, 299], [0, 1, 2]])
    rows, module, found = torch.arange(2)[:, None], Attention(), []
    for narrow in (False, True):
        inputs = [tensor.clone().requires_grad_() for tensor in three]
        with (
            causal_attention("cpu", 300) as context,
            context.only(module, (rows, columns)) if narrow else nullcontext(),
        ):
            out = module(*inputs, attn_mask=mask)
        read = out.transpose(1, 2)[rows, columns]
        read.square().sum().backward()
        found.append([read.detach(), *(tensor.grad for tensor in inputs)])
    for whole, some in zip(*found, strict=True):
        assert torch.allclose(whole, some, rtol=1e-9, atol=1e-9)
    assert int((out != 0).any(dim=-1).any(dim=1).sum()) == 6
    assert len(multiplied) == 3, "in chunks the first time alone"
    with context:
        Attention()(*three, attn_mask=mask)
        module(*three, attn_mask=mask)
    assert len(multiplied) == 9, "everywhere in other modules, and in this one outside"
