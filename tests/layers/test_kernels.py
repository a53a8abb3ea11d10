"""How many kernels a block would launch on a GPU, counted on fake tensors with a GPU's blocks."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from benchmarks.gpu.case import Kernels
from bgl import _sizes
from bgl.layers import BatchFormerBlock, BGFormerBlock, DyBGRBlock

C = 384
BLOCKS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "dybgr": (lambda: DyBGRBlock(C), 400),
    "dybgr-paper": (lambda: DyBGRBlock(C, formulation="paper"), 390),
    "bgformer": (lambda: BGFormerBlock(C), 100),
    "batchformer": (lambda: BatchFormerBlock(C), 60),
}


@pytest.mark.parametrize("samples", [405, 4096])
@pytest.mark.parametrize("name", BLOCKS)
def test_kernels_of_a_block_forward_and_backward(monkeypatch, name, samples):
    for place in ("_CPU_BLOCK", "_CPU_KEPT"):
        monkeypatch.setattr(_sizes, place, _sizes._CUDA_BLOCK)
    make, ceiling = BLOCKS[name]
    with FakeTensorMode():
        block, x = make(), torch.randn(samples, C, requires_grad=True)
        with Kernels() as kernels:
            block(x, y=torch.arange(samples) // 9).sum().backward()
    assert ceiling / 2 < kernels.count <= ceiling
