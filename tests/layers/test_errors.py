"""Every layer names the argument that is wrong."""

from __future__ import annotations

import pytest
import torch

from bgl.layers import (
    AdaptiveGraph,
    AttentionGraph,
    BatchGraphConv,
    BGFormerBlock,
    DyBGR,
    DyBGRBlock,
    FeatureMemory,
    LabelGraph,
    RandomGraph,
)

X, ROWS, HEADS = torch.randn(4, 8), torch.zeros(3).long(), torch.zeros(3, 2, 4)
EDGES = torch.zeros(2, 5).long()


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: DyBGR(num_iterations=-1), "`num_iterations`"),
        (lambda: DyBGR(epsilon=1.5), "`epsilon`"),
        (lambda: DyBGRBlock(0), "`channels`"),
        (lambda: DyBGRBlock(8, ffn_ratio=0.0), "`ffn_ratio`"),
        (lambda: DyBGRBlock(8, norm="batch"), "`norm`"),
        (lambda: DyBGRBlock(8)(X[:, :7]), "8 channels, but got 7"),
        (lambda: DyBGRBlock(8)(X, y=ROWS), "`y`"),
        (lambda: BatchGraphConv()(X, torch.zeros(3, 5).long()), "`edge_index`"),
        (lambda: BatchGraphConv()(X, EDGES - 1), "`edge_index` .*nodes from 0 to 3, .*-1"),
        (lambda: BatchGraphConv()(X, EDGES, torch.ones(4)), "`edge_weight`"),
        (lambda: BatchGraphConv(1.0)(HEADS, EDGES, torch.zeros(5, 3)), "`edge_weight`"),
        (lambda: AttentionGraph(0), "`k`"),
        (lambda: AttentionGraph(2)(HEADS[0], HEADS[0]), "`query`"),
        (lambda: AttentionGraph(2)(HEADS, HEADS[:2]), "same shape"),
        (lambda: BGFormerBlock(10, 4), "`channels`.*multiple of `heads`"),
        (lambda: BGFormerBlock(8, lam=1.5), "`lam`"),
        (lambda: BGFormerBlock(8, semantic="other"), "`semantic`"),
        (lambda: LabelGraph()(torch.zeros(3)), "`y`"),
        (lambda: LabelGraph()(ROWS, batch=ROWS[:2]), "`batch`"),
        (lambda: RandomGraph(0), "`k`"),
        (lambda: RandomGraph(2)(X[0]), "`x`"),
        (lambda: RandomGraph(2)(X, batch=ROWS), "`batch`"),
        (lambda: FeatureMemory(0), "`size`"),
        (lambda: FeatureMemory(4)(X[0], ROWS), "`x`"),
        (lambda: FeatureMemory(4)(X[:3], torch.ones(3)), "`y`"),
        (lambda: AdaptiveGraph(0), "`k`"),
        (lambda: AdaptiveGraph(2.5), "`k`"),
        (lambda: AdaptiveGraph(lam=-1.0), "`lam`"),
        (lambda: AdaptiveGraph(lam=1e300), r"`lam`.*1e\+300"),
        (lambda: AdaptiveGraph(beta=float("nan")), "`beta`"),
        (lambda: AdaptiveGraph(formulation="other"), "`formulation`"),
        (lambda: AdaptiveGraph(2)(X[0]), r"`x`.*shape \[8\]"),
        (lambda: AdaptiveGraph(2)(X.long()), "`x`.*int64"),
        (lambda: AdaptiveGraph(2)(X, y=ROWS), "`y`.*4.*3"),
        (lambda: AdaptiveGraph(2)(X, y=torch.zeros(4)), "`y`.*float32"),
        (lambda: AdaptiveGraph(2)(X, batch=ROWS), "`batch`"),
        (lambda: AdaptiveGraph(2)(X, context=X[:3]), "`context`"),
        (lambda: AdaptiveGraph(2)(X, candidates=torch.zeros(6, 2).long()), "`candidates`"),
        (lambda: AdaptiveGraph(2)(X, candidates=EDGES - 2), "`candidates` .*from -1 to 3, .*-2"),
    ],
)
def test_the_argument_is_named(call, match):
    with pytest.raises(ValueError, match=match):
        call()
