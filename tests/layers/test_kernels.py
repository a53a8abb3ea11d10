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
    "dybgr": (lambda: DyBGRBlock(C), 330),
    "dybgr-paper": (lambda: DyBGRBlock(C, formulation="paper"), 340),
    "bgformer": (lambda: BGFormerBlock(C), 100),
    "batchformer": (lambda: BatchFormerBlock(C), 60),
}


@pytest.fixture(autouse=True)
def gpu(monkeypatch):
    """The sizes of a GPU's blocks, on tensors without values."""
    monkeypatch.setattr(_sizes, "_CPU_BLOCK", _sizes._CUDA_BLOCK)
    monkeypatch.setattr(_sizes, "_CPU_KEPT", _sizes._CUDA_BLOCK)
    monkeypatch.setattr(_sizes, "_CPU_SPREAD", _sizes._CUDA_SPREAD)
    with FakeTensorMode():
        yield


@pytest.mark.parametrize("samples", [405, 4096])
@pytest.mark.parametrize("name", BLOCKS)
def test_kernels_of_a_block_forward_and_backward(name, samples):
    make, ceiling = BLOCKS[name]
    block, x = make(), torch.randn(samples, C, requires_grad=True)
    y = torch.arange(samples) // 9
    with Kernels() as kernels:
        block(x, y=y).sum().backward()
    assert ceiling / 2 < kernels.count <= ceiling
