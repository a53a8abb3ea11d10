"""Sums along any graph, against a loop over its edges."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import assert_close
from torch import Tensor

from bgl.layers import AdaptiveGraph, BatchGraphConv, DyBGRBlock

N, C = 7, 4
EDGES = torch.tensor([[0, 1, 2, 3, 3, 6], [1, 0, 0, 2, 2, 5]])  # one edge twice, node 4 has none


def looped(x: Tensor, weight: Tensor | None, epsilon: float) -> Tensor:
    sums = torch.zeros_like(x)
    for e, (source, target) in enumerate(EDGES.T.tolist()):
        sums[target] += x[source] * (1 if weight is None else weight[e])
    return epsilon * sums + (1 - epsilon) * x


@pytest.mark.parametrize("weighted", [False, True], ids=["no-weights", "weights"])
@pytest.mark.parametrize("form", ["edges", "sparse"])
def test_every_form_of_a_graph_gives_the_sums_of_a_loop(form: str, weighted: bool) -> None:
    x = torch.randn(N, C, dtype=torch.float64)
    weight = torch.rand(EDGES.size(1), dtype=torch.float64) if weighted else None
    conv = BatchGraphConv(epsilon=0.3)
    if form == "sparse":  # whose rows are the targets; equal edges are added up
        values = torch.ones(EDGES.size(1), dtype=torch.float64) if weight is None else weight
        adjacency = torch.sparse_coo_tensor(EDGES.flip(0), values, (N, N)).coalesce()
        found = conv(x, adjacency.to_sparse_csr())
    else:
        found = conv(x, EDGES, weight)
    assert_close(found, looped(x, weight, 0.3))


def test_a_learned_graph_is_mixed_along_as_its_edges_are() -> None:
    x = torch.randn(N, C, dtype=torch.float64)
    learner, conv = AdaptiveGraph(3), BatchGraphConv(epsilon=0.3)
    assert_close(conv.along(x, learner.prepare(x).solve(x)), conv(x, *learner(x)))


@pytest.mark.parametrize("x", [torch.zeros(N), torch.zeros(N, C, dtype=torch.int64), [[0.0]]])
def test_anything_but_features_is_refused(x: Any) -> None:
    with pytest.raises(ValueError, match="Expected argument `x` to be a floating-point tensor"):
        BatchGraphConv()(x, EDGES)


def test_features_of_another_type_than_a_block_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"parameters' type torch\.float32, but got torch\.float64"
    ):
        DyBGRBlock(C, 3)(torch.zeros(N, C, dtype=torch.float64))
