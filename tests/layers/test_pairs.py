"""Blocks of rows instead of N × N: the same graphs and gradients, and no large tensor."""

from __future__ import annotations

import pytest
import torch
from helpers import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from bgl.layers import AdaptiveGraph, pairs
from bgl.layers.pairs import _PairDots


def run(formulation, x, y, batch=None, candidates=None):
    x = x.clone().requires_grad_()
    learner = AdaptiveGraph(4, formulation=formulation)
    edge_index, weight = learner(x, y=y, batch=batch, context=x[:, :3], candidates=candidates)
    (grad,) = torch.autograd.grad((weight * torch.arange(weight.numel())).sum(), x)
    return edge_index, weight.detach(), grad


@pytest.mark.parametrize("formulation", ["released", "paper"])
@pytest.mark.parametrize("case", ["labels", "no-labels", "batch", "candidates"])
def test_blocks_equal_dense(monkeypatch, case, formulation):
    x = torch.randn(30, 6, dtype=torch.float64)
    y = None if case == "no-labels" else torch.arange(30) // 3
    batch = torch.arange(30) // 10 if case == "batch" else None
    candidates = None
    if case == "candidates":
        candidates = torch.stack([torch.randperm(30)[:12] for _ in range(30)])
    expected = run(formulation, x, y, batch, candidates)
    monkeypatch.setattr(pairs, "DENSE_SAMPLES", 0)
    monkeypatch.setattr(pairs, "BLOCK_PAIRS", 100)
    monkeypatch.setattr(pairs, "GATHERED_PAIRS", 40)
    edge_index, weight, grad = run(formulation, x, y, batch, candidates)
    assert torch.equal(edge_index, expected[0])
    assert_close(weight, expected[1], 1e-12)
    assert_close(grad, expected[2], 1e-10)


def test_pair_dots_gradient(monkeypatch):
    monkeypatch.setattr(pairs, "GATHERED_PAIRS", 7)
    x = torch.randn(9, 4, dtype=torch.float64, requires_grad=True)
    nodes = torch.randint(9, (9, 3))
    assert_close(_PairDots.apply(x, nodes), (x @ x.t()).gather(1, nodes), 1e-12)
    assert torch.autograd.gradcheck(lambda a: _PairDots.apply(a, nodes), x)


class Largest(TorchDispatchMode):
    """Records the most elements of any tensor that is made."""

    def __init__(self):
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(tensor, torch.Tensor):
                self.numel = max(self.numel, tensor.untyped_storage().size())
        return out


@pytest.mark.parametrize("formulation", ["released", "paper"])
def test_no_tensor_grows_with_the_square(monkeypatch, formulation):
    monkeypatch.setattr(pairs, "BLOCK_PAIRS", 2**16)
    n, c = 4096, 8
    x = torch.randn(n, c, requires_grad=True)
    with Largest() as largest:
        _, weight = AdaptiveGraph(5, formulation=formulation)(x)
        weight.square().sum().backward()
    # a block of rows with 64-bit positions, or N·(k + 5) gathered features
    assert largest.numel <= max(8 * 2**16, 8 * n * 10, 4 * 2**15 * c) < n * n
