"""draw_batch_graph: every edge where it should be, and none that should not."""

from __future__ import annotations

import matplotlib as mpl
import pytest
import torch
from matplotlib.colors import to_rgba
from torch_geometric.data import Data

from bgl import to_batch_graph
from bgl.layers import AdaptiveGraph
from bgl.visualization import draw_batch_graph
from bgl.visualization.batch_graph import OTHER_CLASS, SAME_CLASS

mpl.use("Agg")


@pytest.fixture(autouse=True)
def _close():
    yield
    mpl.pyplot.close("all")


def drawn(axes):
    """Number of line segments by colour."""
    return {
        tuple(c.get_colors()[0][:3]): len(c.get_segments())
        for c in axes.collections
        if hasattr(c, "get_segments")
    }


def test_kinds_of_edges_and_equal_weights():
    edge_index = torch.tensor([[0, 1, 1, 2, 3], [1, 0, 2, 3, 3]])  # both ways, and a self-loop
    data = Data(edge_index=edge_index, y=torch.tensor([0, 0, 1, 1]), num_nodes=4)
    assert drawn(draw_batch_graph(data)) == {
        to_rgba(SAME_CLASS)[:3]: 2,
        to_rgba(OTHER_CLASS)[:3]: 1,
    }


def test_edge_budget_keeps_the_strongest_and_says_so():
    edge_index = torch.tensor([[1, 2, 3], [0, 0, 0]])
    data = Data(edge_index=edge_index, edge_weight=torch.tensor([0.1, 0.9, 0.5]), num_nodes=4)
    axes = draw_batch_graph(data, max_edges=2)
    assert axes.get_xlabel() == "the 2 strongest of 3 edges"
    widths = next(c.get_linewidths() for c in axes.collections if hasattr(c, "get_segments"))
    assert sorted(widths) == pytest.approx([0.3 + 3.2 * 0.5 / 0.9, 3.5])


@pytest.mark.parametrize("heads", [None, 3])
def test_thumbnails_and_heads(heads):
    data = to_batch_graph(torch.randn(9, 4), torch.arange(9) // 3, AdaptiveGraph(2))
    if heads:
        data.edge_weight = data.edge_weight[:, None].repeat(1, heads)
    axes = draw_batch_graph(data, torch.zeros(9, 3, 16, 16, dtype=torch.uint8))
    assert len(axes.artists) == 9


def test_no_edges_and_one_node():
    draw_batch_graph(Data(edge_index=torch.zeros(2, 0).long(), num_nodes=1))


def test_errors():
    data = to_batch_graph(torch.randn(9, 4), learner=AdaptiveGraph(2))
    with pytest.raises(ValueError, match="`images`"):
        draw_batch_graph(data, torch.zeros(8, 3, 4, 4, dtype=torch.uint8))
    with pytest.raises(ValueError, match="`max_edges`"):
        draw_batch_graph(data, max_edges=-1)
    with pytest.raises(ValueError, match="at least one node"):
        draw_batch_graph(Data(edge_index=torch.zeros(2, 0).long(), num_nodes=0))
