"""What all blocks have in common: symmetries, batches of graphs, gradients, half precision."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from helpers import assert_close
from torch import nn

from bgl.layers import BatchFormerBlock, BGFormerBlock, DyBGRBlock

BLOCKS: dict[str, Callable[..., nn.Module]] = {
    "dybgr": lambda **options: DyBGRBlock(8, 2, **options),
    "dybgr-paper": lambda **options: DyBGRBlock(8, 2, formulation="paper", **options),
    "bgformer": lambda **options: BGFormerBlock(8, 2, 3, **options),
    "bgformer-attention": lambda **options: BGFormerBlock(8, 2, 3, semantic="attention", **options),
    "batchformer": lambda **options: BatchFormerBlock(8, 2, **options),
}
blocks = pytest.mark.parametrize("make", BLOCKS.values(), ids=BLOCKS.keys())
norms = pytest.mark.parametrize("norm", ["layer", "graph"])


@blocks
@norms
def test_permutation_equivariance(make, norm):
    block = make(norm=norm).double()
    x, y, p = torch.randn(12, 8).double(), torch.arange(12) // 3, torch.randperm(12)
    assert_close(block(x[p], y=y[p]), block(x, y=y)[p], 1e-12)


@pytest.mark.filterwarnings("ignore:k=2")
@blocks
@norms
def test_batch_vector_equals_separate_calls(make, norm):
    block = make(norm=norm).double()
    x, y = torch.randn(12, 8).double(), torch.arange(12) // 3
    batch = torch.tensor([0] * 2 + [1] * 9 + [2])
    separate = torch.cat([block(x[batch == b], y=y[batch == b]) for b in range(3)])
    assert_close(block(x, y=y, batch=batch), separate, 1e-12)


@blocks
def test_gradcheck(make):
    block = make().double()
    x = torch.randn(6, 8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda a: block(a, y=torch.arange(6) // 2), x)


@pytest.mark.filterwarnings("ignore:k=2")
@blocks
@pytest.mark.parametrize("n", [1, 2, 20])
def test_autocast_and_small_batches(make, n):
    block = make()
    x = torch.randn(n, 8, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = block(x, y=torch.arange(n) // 2)
    out.float().square().sum().backward()
    assert torch.isfinite(out).all()
    assert torch.isfinite(x.grad).all()
