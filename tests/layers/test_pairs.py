"""Blocks of rows instead of N × N: the same graphs and derivatives, and no large tensor."""

from __future__ import annotations

import warnings
import weakref

import pytest
import torch
from helpers import LargestResult, assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from bgl.layers import AdaptiveGraph, DyBGR
from bgl.layers.groups import group_numbers

FORMULATIONS = ["released", "paper"]


def run(formulation, x, y, batch=None, candidates=None):
    x = x.clone().requires_grad_()
    learner = AdaptiveGraph(4, formulation=formulation)
    edge_index, weight = learner(x, y=y, batch=batch, context=x[:, :3], candidates=candidates)
    (grad,) = torch.autograd.grad((weight * torch.arange(weight.numel())).sum(), x)
    return edge_index, weight.detach(), grad


@pytest.fixture
def small_blocks(monkeypatch):
    def shrink(block: int = 100) -> None:
        monkeypatch.setattr("bgl._sizes._CPU_BLOCK", block)
        monkeypatch.setattr("bgl._sizes._CPU_KEPT", 0)

    return shrink


@pytest.mark.parametrize("formulation", FORMULATIONS)
@pytest.mark.parametrize("case", ["labels", "no-labels", "batch", "shuffled", "candidates"])
def test_blocks_equal_dense(small_blocks, case, formulation):
    x = torch.randn(30, 6, dtype=torch.float64)
    y = None if case == "no-labels" else torch.arange(30) // 3
    batch = torch.arange(30) // 10 if case in ("batch", "shuffled") else None
    if case == "shuffled":
        batch = batch[torch.randperm(30)]
    candidates = None
    if case == "candidates":
        candidates = torch.stack([torch.randperm(30)[:12] for _ in range(30)])
    expected = run(formulation, x, y, batch, candidates)
    small_blocks()
    edge_index, weight, grad = run(formulation, x, y, batch, candidates)
    assert torch.equal(edge_index, expected[0])
    assert_close(weight, expected[1], 1e-12)
    assert_close(grad, expected[2], 1e-10)


@pytest.mark.parametrize("formulation", FORMULATIONS)
@pytest.mark.parametrize("together", [0, 9, 64], ids=lambda t: f"together{t}")
def test_graphs_share_a_block_or_not(monkeypatch, together, formulation):
    """Empty graphs, gaps, and graphs of one node among them."""
    monkeypatch.setattr("bgl.layers.pairs.TOGETHER", together)
    counts = [1, 4, 0, 7, 2, 0, 12, 1, 3]
    batch = torch.repeat_interleave(torch.arange(9), torch.tensor(counts))
    x = torch.randn(30, 6, dtype=torch.float64)
    learner = AdaptiveGraph(4, formulation=formulation)
    edge_index, weight = learner(x, batch=batch)
    edges, weights, first = [], [], 0
    for n in counts:
        if n > 1:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # k is lowered
                alone = learner(x[first : first + n])
            edges.append(alone[0] + first)
            weights.append(alone[1])
        first += n
    assert torch.equal(edge_index, torch.cat(edges, dim=1))
    assert_close(weight, torch.cat(weights), 1e-12)


def second(function, x):
    """The gradient of a gradient penalty."""
    (first,) = torch.autograd.grad(function(x).square().sum(), x, create_graph=True)
    return torch.autograd.grad(first.square().sum(), x)[0]


@pytest.mark.parametrize("formulation", FORMULATIONS)
@pytest.mark.parametrize("way", ["blocks", "candidates", "batch"])
def test_second_derivatives_are_the_same_every_way(small_blocks, way, formulation):
    x = torch.randn(12, 4, dtype=torch.float64, requires_grad=True)
    y = torch.arange(12) // 3
    learner = AdaptiveGraph(3, formulation=formulation)
    expected = second(lambda x: learner(x, y=y)[1], x)
    more = {}
    if way == "candidates":
        more["candidates"] = (torch.arange(12)[:, None] + torch.arange(1, 12)) % 12
    elif way == "batch":
        more["batch"] = torch.zeros(12).long()
    else:
        small_blocks(30)
    assert_close(second(lambda x: learner(x, y=y, **more)[1], x), expected, 1e-8)


@pytest.mark.parametrize("formulation", FORMULATIONS)
def test_second_derivatives_by_finite_differences(formulation):
    x = torch.randn(9, 3, dtype=torch.float64, requires_grad=True)
    layer = DyBGR(3, 2, formulation=formulation)
    layer_of = lambda x: layer(x, y=torch.arange(9) // 3)  # noqa: E731
    assert torch.autograd.gradgradcheck(layer_of, x, fast_mode=True)


def test_numbers_of_groups():
    keys = torch.tensor([3, 3, -1, 7]), torch.tensor([0, 1, 1, 1])
    assert group_numbers(*keys).tolist() == [0, 2, 1, 3]
    assert group_numbers(torch.tensor([], dtype=torch.long)).tolist() == []


@pytest.mark.parametrize("formulation", FORMULATIONS)
def test_no_tensor_grows_with_the_square(small_blocks, formulation):
    small_blocks(2**16)
    n, c = 4096, 8
    x = torch.randn(n, c, requires_grad=True)
    with LargestResult() as largest:
        _, weight = AdaptiveGraph(5, formulation=formulation)(x)
        weight.square().sum().backward()
    assert largest.numel <= max(2**16, 10 * n)  # a block of rows, or N·(k + 5) entries


class Live(TorchDispatchMode):
    """Records the most bytes that live at once in what is made."""

    def __init__(self):
        super().__init__()
        self.bytes, self.most = {}, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                key = storage._cdata
                if key not in self.bytes:
                    self.bytes[key] = storage.nbytes()
                    weakref.finalize(storage, self.bytes.pop, key)
        self.most = max(self.most, sum(self.bytes.values()))
        return out


@pytest.mark.parametrize(("formulation", "most"), [("released", 90), ("paper", 110)])
def test_candidates_take_few_bytes_for_each_edge(small_blocks, formulation, most):
    small_blocks(2000)
    n, k = 1000, 20
    candidates = (torch.arange(n)[:, None] + torch.arange(1, 2 * k)) % n
    x = torch.randn(n, 4, requires_grad=True)
    with Live() as live:
        AdaptiveGraph(k, formulation=formulation)(x, candidates=candidates)[1].sum().backward()
    assert live.most < most * n * k
