"""to_batch_graph."""

from __future__ import annotations

import pytest
import torch

from bgl import to_batch_graph
from bgl.layers import AdaptiveGraph


def test_features_become_a_data_object():
    x = torch.randn(10, 4, requires_grad=True)
    y, batch = torch.arange(10) // 2, torch.arange(10) // 5
    learner = AdaptiveGraph(k=2)
    data = to_batch_graph(x, y, learner=learner, batch=batch, name="cars")
    assert data.validate(raise_on_error=True)
    assert data.num_nodes == 10
    assert data.name == "cars"
    expected = learner(x, y, batch)
    assert torch.equal(data.edge_index, expected[0])
    assert torch.equal(data.edge_weight, expected[1])
    data.edge_weight.square().sum().backward()
    assert x.grad.abs().sum() > 0


def test_labels_are_optional_and_checked():
    assert to_batch_graph(torch.randn(40, 4)).y is None
    with pytest.raises(ValueError, match="`y`"):
        to_batch_graph(torch.randn(4, 4), torch.zeros(3).long())
    with pytest.raises(ValueError, match="`x`"):
        to_batch_graph(torch.randn(4))
