"""Kernels that a block or a loss would launch on a GPU, counted on fake tensors with its sizes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from benchmarks.gpu.case import Kernels
from bgl import _sizes
from bgl.hyperbolic import HyperbolicDistance, ToPoincareBall
from bgl.layers import BatchFormerBlock, BGFormerBlock, DyBGRBlock
from bgl.losses import PairwiseCrossEntropyLoss

C = 384
BLOCKS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "dybgr": (lambda: DyBGRBlock(C), 330),
    "dybgr-paper": (lambda: DyBGRBlock(C, formulation="paper"), 340),
    "bgformer": (lambda: BGFormerBlock(C), 100),
    "batchformer": (lambda: BatchFormerBlock(C), 60),
}


LOSSES: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "cosine": (PairwiseCrossEntropyLoss, 105),
    "hyperbolic": (lambda: PairwiseCrossEntropyLoss(0.2, HyperbolicDistance()), 132),
}


@pytest.fixture(autouse=True)
def gpu(monkeypatch):
    """The sizes of a GPU's blocks, on tensors without values."""
    monkeypatch.setattr(_sizes, "_CPU_BLOCK", _sizes._CUDA_BLOCK)
    monkeypatch.setattr(_sizes, "_CPU_KEPT", _sizes._CUDA_BLOCK)
    monkeypatch.setattr(_sizes, "_CPU_SPREAD", _sizes._CUDA_SPREAD)
    with FakeTensorMode():
        yield


def count(samples: int, call: Callable[[Tensor, Tensor], Tensor]) -> int:
    """Kernels of what maps features and labels, 9 of each class, to a number; both ways."""
    x, y = torch.randn(samples, C, requires_grad=True), torch.arange(samples) // 9
    with Kernels() as kernels:
        call(x, y).backward()
    return kernels.count


@pytest.mark.parametrize("samples", [405, 4096])
@pytest.mark.parametrize("name", BLOCKS)
def test_kernels_of_a_block_forward_and_backward(name, samples):
    make, ceiling = BLOCKS[name]
    block = make()
    assert ceiling / 2 < count(samples, lambda x, y: block(x, y=y).sum()) <= ceiling


@pytest.mark.parametrize("samples", [405, 4095])
@pytest.mark.parametrize("name", LOSSES)
def test_kernels_of_a_loss_forward_and_backward(name, samples):
    make, ceiling = LOSSES[name]
    assert ceiling / 2 < count(samples, make()) <= ceiling


def test_kernels_of_the_way_into_the_ball_forward_and_backward():
    ball = ToPoincareBall()
    assert 20 < count(405, lambda x, _: ball(x).sum()) <= 44
