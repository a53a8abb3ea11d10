"""Relations of the peers of ``bgl.adapt`` against plain loops."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import normalize

from benchmarks.adapting import peers


def test_self_taught_relations_agree_with_the_definition() -> None:
    x, k = torch.randn(20, 6), 4
    relations = peers.SelfTaught(20, 6, k, 1.0)
    relations.learn(x)
    unit = normalize(x)
    order = (unit @ unit.t()).argsort(descending=True).tolist()
    near = [[j for j in row if j != i][:k] for i, row in enumerate(order)]
    mutual = [{j for j in near[i] if i in near[j]} | {i} for i in range(20)]
    batch = [3, 17, 0, 4]
    found = relations(torch.tensor(batch))
    square = [[float((unit[i] - unit[j]).square().sum()) for j in batch] for i in batch]
    mean = sum(map(sum, square)) / 16
    for a, i in enumerate(batch):
        for b, j in enumerate(batch):
            shared = len(mutual[i] & mutual[j])
            overlap = (shared / len(mutual[i]) + shared / len(mutual[j])) / 2
            expected = (math.exp(-square[a][b] / mean) + overlap) / 2
            assert float(found[a, b]) == pytest.approx(expected, abs=1e-5)


def test_clusters_and_views_are_classes() -> None:
    x = torch.eye(2, 6).repeat_interleave(20, 0) + 0.01 * torch.randn(40, 6)
    clusters = peers.PseudoLabels(40, 6, 9, 1.0)
    clusters.learn(x)
    batch = torch.tensor([0, 19, 20, 39])
    assert clusters(batch).tolist() == [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1]]
    views = peers.TwoViews(40, 6, 9, 1.0)
    assert views(torch.tensor([5, 5, 7])).tolist() == [[1, 1, 0], [1, 1, 0], [0, 0, 1]]
