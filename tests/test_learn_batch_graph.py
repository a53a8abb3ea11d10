"""LearnBatchGraph: the graph of to_batch_graph, put on the data, with nothing stale left."""

from __future__ import annotations

import pytest
import torch
from torch_geometric.data import Batch, Data, HeteroData
from torch_geometric.loader import DataLoader
from torch_geometric.transforms import Compose, NormalizeFeatures

from bgl import to_batch_graph
from bgl.layers import AdaptiveGraph
from bgl.transforms import LearnBatchGraph


def points(n: int = 9) -> Data:
    return Data(x=torch.randn(n, 4), y=torch.arange(n) % 3)


@pytest.mark.parametrize("use_labels", [False, True])
def test_the_graph_is_that_of_to_batch_graph(use_labels):
    data = points()
    learned = LearnBatchGraph(AdaptiveGraph(2), use_labels)(data)
    expected = to_batch_graph(data.x, data.y if use_labels else None, AdaptiveGraph(2))
    assert torch.equal(learned.edge_index, expected.edge_index)
    assert torch.equal(learned.edge_weight, expected.edge_weight)
    assert learned.y is data.y
    assert data.edge_index is None  # the original is left as it was


def test_graphs_of_a_batch_are_learned_apart():
    graphs = [points(6), points(9)]
    learn = LearnBatchGraph(AdaptiveGraph(2))
    together = learn(Batch.from_data_list(graphs))
    apart = Batch.from_data_list([learn(graph) for graph in graphs])
    assert torch.equal(together.edge_index, apart.edge_index)
    torch.testing.assert_close(together.edge_weight, apart.edge_weight)


@pytest.mark.parametrize("had_edges", [False, True], ids=["no-edges", "edges"])
def test_a_batch_is_taken_apart_again(had_edges):
    """Each graph with its own edges and weights, an empty one and a single node among them."""
    graphs = [points(6), points(0), points(9), points(1)]
    for graph in graphs:
        if had_edges:
            graph.edge_index = torch.zeros(2, 3).long() if graph.num_nodes else None
            graph.edge_index = graph.edge_index if graph.num_nodes else torch.zeros(2, 0).long()
            graph.edge_attr = torch.ones(graph.edge_index.size(1), 2)
    learn = LearnBatchGraph(AdaptiveGraph(2))
    batch = Batch.from_data_list(graphs)
    apart = learn(batch).to_data_list()
    assert [graph.num_nodes for graph in apart] == [6, 0, 9, 1]
    for graph, mine in zip(graphs, apart, strict=True):
        assert torch.equal(mine.x, graph.x)
        assert "edge_attr" not in mine
        if graph.num_nodes > 1:
            alone = learn(graph)
            assert torch.equal(mine.edge_index, alone.edge_index)
            torch.testing.assert_close(mine.edge_weight, alone.edge_weight)
        else:
            assert mine.edge_index.shape == (2, 0)
    again = Batch.from_data_list(apart)
    assert torch.equal(again.edge_index, learn(batch).edge_index)
    if had_edges:  # the original can still be taken apart
        assert batch.to_data_list()[0].edge_index.shape == (2, 3)


def test_graph_numbers_beyond_the_nodes():
    nodes = [0] * 9 + [3]
    batch = Batch.from_data_list([points(n) for n in nodes])
    learned = LearnBatchGraph(AdaptiveGraph(1))(batch)
    assert learned.edge_index.max() == 2
    assert learned.to_data_list()[9].num_edges == 3


def test_in_a_loader_and_a_chain():
    chain = Compose([NormalizeFeatures(), LearnBatchGraph(AdaptiveGraph(2))])
    loader = DataLoader([chain(points(5)), chain(points(7))], batch_size=2)
    batch = next(iter(loader))
    assert batch.num_edges == len(batch.edge_weight) == 2 * 12
    assert int(batch.edge_index[:, 10:].min()) == 5


def test_old_edges_leave_nothing_behind():
    data = points()
    data.edge_index = torch.zeros(2, 3).long()
    data.edge_weight, data.edge_attr = torch.ones(3), torch.ones(3, 2)
    data.adj_t = torch.eye(9).to_sparse_csr()
    learned = LearnBatchGraph(AdaptiveGraph(2))(data)
    assert learned.num_edges == len(learned.edge_weight) == 18
    assert "edge_attr" not in learned
    assert "adj_t" not in learned


def test_gradient_reaches_the_features():
    data = points()
    data.x.requires_grad_()
    LearnBatchGraph(AdaptiveGraph(2))(data).edge_weight.square().sum().backward()
    assert float(data.x.grad.abs().sum()) > 0


@pytest.mark.parametrize(
    ("data", "named"),
    [
        (Data(y=torch.zeros(3).long(), num_nodes=3), "with `x`.*`attr`"),
        (HeteroData(), "PyG Data"),
        (Data(x=torch.zeros(3).long(), y=torch.zeros(3).long()), "`x`"),
        (Data(x=torch.randn(3, 2)), "labels `y`"),
        (Data(x=torch.randn(3, 2), y=torch.zeros(1).long()), "`y`"),
    ],
    ids=["no features", "hetero", "one number a node", "no labels", "a label for the graph"],
)
def test_errors(data, named):
    with pytest.raises(ValueError, match=named):
        LearnBatchGraph(use_labels=True)(data)


def test_positions_instead_of_features():
    """The graph is that of the positions, alone and in a batch that can be taken apart."""
    clouds = [Data(pos=torch.randn(n, 3)) for n in (7, 9)]
    transform = LearnBatchGraph(AdaptiveGraph(k=3), attr="pos")
    expected = [to_batch_graph(cloud.pos, learner=AdaptiveGraph(k=3)) for cloud in clouds]
    apart = transform(Batch.from_data_list(clouds)).to_data_list()
    for found, one, cloud in zip(apart, expected, clouds, strict=True):
        for graph in (found, transform(cloud)):
            assert "x" not in graph
            order = [data.edge_index[0] * 10 + data.edge_index[1] for data in (graph, one)]
            places = [keys.argsort() for keys in order]
            assert torch.equal(graph.edge_index[:, places[0]], one.edge_index[:, places[1]])
            torch.testing.assert_close(graph.edge_weight[places[0]], one.edge_weight[places[1]])


def test_repr():
    assert repr(LearnBatchGraph(AdaptiveGraph(2))).startswith("LearnBatchGraph(AdaptiveGraph(k=2")
