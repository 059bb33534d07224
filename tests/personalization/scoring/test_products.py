import os
import subprocess
import sys

import pytest
import torch

from personalization.scoring import products
from personalization.scoring.products import OneDnnProducts, fast_products, onednn_is_faster

HAVE = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
"""Where PyTorch has no oneDNN its operator is played by the plain formula: what is sent there is tested there, too."""


@pytest.fixture
def sent(monkeypatch):
    """The shapes of what goes to oneDNN."""
    shapes, real = [], products._product if HAVE else torch.nn.functional.linear

    def spied(x, weight, bias):
        shapes.append((*x.shape, *weight.shape))
        return real(x, weight, bias)

    monkeypatch.setattr(products, "_product", spied)
    return shapes


@pytest.mark.parametrize("shape", [(1, 1), (3, 5, 7), (2, 130, 48)])
@pytest.mark.parametrize("bias", [True, False])
def test_products_equal_double_precision(shape, bias, sent):
    torch.manual_seed(0)
    layer, x = torch.nn.Linear(shape[-1], 9, bias=bias), torch.randn(shape)
    with torch.inference_mode(), OneDnnProducts():
        ours = layer(x)
    assert len(sent) == 1
    assert torch.allclose(ours.double(), layer.double()(x.double()), atol=1e-5)


def test_addmm_of_a_conv1d_goes_the_same_way(sent):
    b, x, w = torch.randn(6), torch.randn(10, 4), torch.randn(4, 6)
    with torch.inference_mode(), OneDnnProducts():
        ours = torch.addmm(b, x, w)
    assert len(sent) == 1
    assert torch.allclose(ours, b + x @ w, atol=1e-5)


def test_gradients_other_dtypes_and_empty_inputs_are_left_alone(sent):
    layer = torch.nn.Linear(4, 3)
    with OneDnnProducts():
        layer(torch.randn(2, 4)).sum().backward()
    assert layer.weight.grad is not None
    with torch.inference_mode(), OneDnnProducts():
        assert layer(torch.randn(0, 4)).shape == (0, 3)
        assert layer.to(torch.bfloat16)(torch.randn(2, 4, dtype=torch.bfloat16)).dtype == torch.bfloat16
        assert torch.addmm(torch.randn(2, 3), torch.randn(2, 4), torch.randn(4, 3)).shape == (2, 3)
    assert sent == []


@pytest.mark.parametrize("onednn", [True, False])
def test_the_way_back_through_frozen_weights_is_that_of_the_plain_layer(onednn, sent, monkeypatch):
    monkeypatch.setattr(products, "onednn_is_faster", lambda *, backwards: onednn)
    torch.manual_seed(0)
    layer, x = torch.nn.Linear(48, 9).requires_grad_(False), torch.randn(2, 13, 48, requires_grad=True)
    pull = torch.randn(2, 13, 9)
    with OneDnnProducts():
        layer(x).backward(pull)
    assert len(sent) == 1 + onednn
    assert x.grad is not None
    assert torch.allclose(x.grad, pull @ layer.weight, atol=1e-5)


def test_without_the_operator_nothing_changes(monkeypatch):
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    onednn_is_faster.cache_clear()
    assert not onednn_is_faster()
    onednn_is_faster.cache_clear()


def test_a_gpu_keeps_its_own_products():
    assert not isinstance(fast_products("cuda"), OneDnnProducts)


GROWTH = """
import psutil, torch
from personalization.scoring.products import KEPT, _product, fast_products

def run(shapes):
    weight = torch.ones(128, 64)
    for rows in shapes:
        _product(torch.ones(rows, 64), weight)
    return psutil.Process().memory_info().rss

with torch.inference_mode(), fast_products("cpu"):
    full = run(range(1, KEPT + 100))
    print((run(range(KEPT + 100, KEPT + 400)) - full) / 300)
"""


@pytest.mark.skipif(not HAVE, reason="PyTorch has no oneDNN here")
@pytest.mark.parametrize("given", [{}, dict.fromkeys(products.CAPACITIES, "4096")])
def test_shapes_that_are_kept_are_few_unless_the_user_says_how_many(given):
    told = {name: text for name, text in os.environ.items() if name not in products.CAPACITIES}
    returned = {"MALLOC_MMAP_THRESHOLD_": "100000", "MALLOC_TRIM_THRESHOLD_": "100000"}  # what is free is given back
    run = subprocess.run(
        [sys.executable, "-c", GROWTH], env={**told, **returned, **given}, capture_output=True, text=True, check=True
    )
    grown = float(run.stdout)
    assert (grown < 0.2 * products.BYTES_OF_SHAPE) == (not given), grown
    assert grown < products.BYTES_OF_SHAPE
