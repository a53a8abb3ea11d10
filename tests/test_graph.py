"""to_batch_graph."""

from __future__ import annotations

import pytest
import torch

from bgl import to_batch_graph
from bgl.layers import AdaptiveGraph, LabelGraph, RandomGraph
from bgl.transforms import LearnBatchGraph


def test_features_become_a_data_object():
    x = torch.randn(10, 4, requires_grad=True)
    y, batch = torch.arange(10) // 2, torch.arange(10) // 5
    learner = AdaptiveGraph(k=2)
    data = to_batch_graph(x, y, learner=learner, batch=batch, name="cars")
    assert data.validate(raise_on_error=True)
    assert data.num_nodes == 10
    assert data.name == "cars"
    expected = learner(x, y=y, batch=batch)
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


@pytest.mark.parametrize("graphs", [1, 2])
def test_learners_of_labels_or_features_alone(graphs):
    x, y = torch.randn(10, 4), torch.arange(10) // 2 % 3
    batch = None if graphs == 1 else torch.arange(10) // 5
    data = to_batch_graph(x, y, learner=LabelGraph(), batch=batch)
    expected = LabelGraph()(y, batch=batch)
    assert torch.equal(data.edge_index, expected[0])
    assert torch.equal(data.edge_weight, expected[1])

    data = to_batch_graph(x, y, learner=RandomGraph(k=3), batch=batch)
    assert data.edge_index.shape == (2, 30)
    if batch is None:  # a random graph that took the labels for graphs would keep to them
        assert (y[data.edge_index[0]] != y[data.edge_index[1]]).any()
    else:
        assert (batch[data.edge_index[0]] == batch[data.edge_index[1]]).all()


def test_a_label_graph_needs_labels():
    with pytest.raises(ValueError, match=r"`y`.*None"):
        to_batch_graph(torch.randn(6, 4), learner=LabelGraph())


def test_any_callable_is_a_learner():
    def ring(features, *, y, batch=None):
        n = len(features)
        return torch.stack([torch.arange(n), torch.arange(n).roll(1)]), torch.ones(n)

    for batch in (None, torch.zeros(5).long()):
        assert to_batch_graph(torch.randn(5, 2), learner=ring, batch=batch).edge_index.size(1) == 5


def test_bad_learners():
    for make in (
        lambda learner: to_batch_graph(torch.randn(5, 2), learner=learner),
        LearnBatchGraph,
    ):
        with pytest.raises(ValueError, match=r"`learner` to be callable, got 10"):
            make(10)
        with pytest.raises(ValueError, match=r"`learner` .* not a class, got AdaptiveGraph"):
            make(AdaptiveGraph)
