"""RandomGraph: who is drawn, and with which weight."""

from __future__ import annotations

import pytest
import torch
from helpers import assert_close

from bgl.layers import DyBGRBlock, RandomGraph, RandomGraphBlock


@pytest.mark.parametrize("k", [1, 3, 20])
def test_draws_distinct_neighbours_of_its_own_graph(k):
    batch = torch.tensor([0, 0, 0, 0, 0, 1, 1, 2])
    (source, target), weight = RandomGraph(k)(torch.zeros(8, 2), batch=batch)
    for i, others in enumerate([4, 4, 4, 4, 4, 1, 1, 0]):
        mine = source[target == i]
        assert len(mine) == len(mine.unique()) == min(k, others)
        assert i not in mine
        assert (batch[mine] == batch[i]).all()
        assert_close(weight[target == i], torch.full((len(mine),), 1 / max(1, len(mine))), 1e-7)


def test_every_other_sample_is_drawn_equally_often():
    torch.manual_seed(0)
    counts = torch.zeros(6, 6)
    for _ in range(2000):
        source, target = RandomGraph(k=2)(torch.zeros(6, 1))[0]
        counts[target, source] += 1
    share = counts / 2000
    assert share.diagonal().eq(0).all()
    assert (share[~torch.eye(6, dtype=torch.bool)] - 2 / 5).abs().max() < 0.06


def test_block_without_edges_equals_dybgr_without_edges():
    block = RandomGraphBlock(8, k=3, epsilon=0.0).double()
    other = DyBGRBlock(8, k=3, epsilon=0.0).double()
    other.load_state_dict(block.state_dict())
    x = torch.randn(10, 8, dtype=torch.float64)
    assert_close(block(x), other(x), 1e-12)


def test_block_mixes_along_the_graph_that_it_returns():
    block = RandomGraphBlock(4, k=2, epsilon=1.0).double()
    x = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    out, graphs = block(x, return_graph=True)
    (source, target), weight = graphs[0]
    adjacency = torch.zeros(5, 5, dtype=torch.float64).index_put((target, source), weight)
    mixed = x + adjacency @ block.norm1(x)
    assert_close(out, mixed + block.mlp(block.norm2(mixed)), 1e-12)
    out.sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()


def test_single_sample_has_no_edges():
    edge_index, weight = RandomGraph(k=2)(torch.zeros(1, 3))
    assert edge_index.shape == (2, 0)
    assert weight.shape == (0,)
