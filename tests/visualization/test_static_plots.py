"""The matplotlib plots: right numbers in them, and no crash on odd graphs."""

from __future__ import annotations

import sys
import types
from importlib.machinery import ModuleSpec

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgba
from matplotlib.patches import Rectangle
from torch_geometric.data import Data

from bgl import to_batch_graph
from bgl.layers import AdaptiveGraph
from bgl.visualization import (
    adjacency_heatmap,
    draw_batch_graph,
    edge_weight_histogram,
    embedding_map,
    project,
    read_history,
    retrieval_grid,
    training_curves,
)
from bgl.visualization._style import OTHER_CLASS, SAME_CLASS
from bgl.visualization.embedding import scattered

mpl.use("Agg")


@pytest.fixture(autouse=True)
def _close():
    yield
    plt.close("all")


def graph(n: int = 12, k: int = 3) -> Data:
    return to_batch_graph(torch.randn(n, 4), torch.arange(n) % 4, AdaptiveGraph(k))


def pictures(n: int) -> torch.Tensor:
    return torch.randint(0, 256, (n, 3, 8, 8), dtype=torch.uint8)


ODD = {
    "no edges": Data(edge_index=torch.zeros(2, 0).long(), num_nodes=3),
    "one node": Data(edge_index=torch.zeros(2, 1).long(), num_nodes=1),
    "one class": Data(edge_index=torch.tensor([[0, 1], [1, 0]]), y=torch.zeros(2).long()),
    "equal weights": Data(edge_index=torch.tensor([[0, 1], [1, 2]]), edge_weight=torch.ones(2)),
    "zero weights": Data(edge_index=torch.tensor([[0, 1], [1, 2]]), edge_weight=torch.zeros(2)),
    "nan weights": Data(edge_index=torch.tensor([[0], [1]]), edge_weight=torch.tensor([torch.nan])),
}


@pytest.mark.parametrize("plot", [draw_batch_graph, adjacency_heatmap, edge_weight_histogram])
@pytest.mark.parametrize("name", ODD)
def test_odd_graphs_are_drawn(plot, name):
    plot(ODD[name]).figure.canvas.draw()


@pytest.mark.parametrize("plot", [draw_batch_graph, adjacency_heatmap, edge_weight_histogram])
@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        (Data(edge_index=torch.zeros(2, 0).long(), num_nodes=0), "at least one node"),
        (Data(edge_index=torch.tensor([[0], [5]]), num_nodes=2), "from 0 to 1"),
        (Data(edge_index=torch.zeros(2, 2).long(), edge_weight=torch.ones(3)), "edge_weight"),
        (Data(edge_index=torch.zeros(2, 1).long(), y=torch.zeros(3), num_nodes=1), "`y`"),
        (Data(num_nodes=2), "edge_index"),
    ],
    ids=["no nodes", "edge outside", "weights", "labels", "no edge_index"],
)
def test_wrong_graphs_are_named(plot, wrong, named):
    with pytest.raises(ValueError, match=named):
        plot(wrong)


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


def test_labels_under_the_nodes():
    axes = draw_batch_graph(graph(), labels=[f"${i}_<b>" for i in range(12)])
    assert [t.get_text() for t in axes.texts] == [rf"\${i}_<b>" for i in range(12)]
    axes.figure.canvas.draw()
    with pytest.raises(ValueError, match="`labels`"):
        draw_batch_graph(graph(), labels=["one"])
    with pytest.raises(ValueError, match="`images`"):
        draw_batch_graph(graph(), pictures(8))
    with pytest.raises(ValueError, match="`max_edges`"):
        draw_batch_graph(graph(), max_edges=-1)
    with pytest.raises(ValueError, match="`seed`"):
        draw_batch_graph(graph(), seed=2.5)


def test_layout_by_embedding():
    """Two far groups of features end up on two sides, though every edge joins the groups."""
    x = torch.randn(2, 1, 8).expand(2, 10, 8).reshape(20, 8) + 0.01 * torch.randn(20, 8)
    left = torch.arange(10)
    data = Data(x=x, edge_index=torch.stack([left, left + 10]))
    points = draw_batch_graph(data, layout="embedding").collections[-1].get_offsets()
    centres = np.array([points[:10].mean(0), points[10:].mean(0)])
    within = max(
        np.linalg.norm(points[i : i + 10] - c, axis=1).mean()
        for i, c in ((0, centres[0]), (10, centres[1]))
    )
    assert np.linalg.norm(centres[0] - centres[1]) > within
    with pytest.raises(ValueError, match="`x`"):
        draw_batch_graph(Data(edge_index=data.edge_index), layout="embedding")
    with pytest.raises(ValueError, match="`layout`"):
        draw_batch_graph(data, layout="circle")


def test_heat_map_is_sorted_by_class():
    y = torch.tensor([1, 0, 1, 0])
    data = Data(
        edge_index=torch.tensor([[0, 3], [2, 1]]), edge_weight=torch.tensor([0.5, 0.25]), y=y
    )
    axes = adjacency_heatmap(data)
    # sorted: 1, 3, 0, 2; node 1 hears 3, node 2 hears 0
    expected = np.zeros((4, 4))
    expected[0, 1], expected[3, 2] = 0.25, 0.5
    np.testing.assert_array_equal(axes.images[0].get_array(), expected)
    assert len([p for p in axes.patches if isinstance(p, Rectangle)]) == 2
    dense = torch.zeros(4, 4)
    dense[1, 3], dense[2, 0] = 0.25, 0.5
    same = adjacency_heatmap(dense, y).images[0].get_array()
    np.testing.assert_array_equal(same, expected)
    with pytest.raises(ValueError, match="`graph`"):
        adjacency_heatmap(torch.zeros(3, 4))


def test_large_heat_map_is_averaged():
    n = 4001
    data = Data(edge_index=torch.arange(n).repeat(2, 1), num_nodes=n)
    assert adjacency_heatmap(data).images[0].get_array().shape == (1334, 1334)


def test_histogram_counts_both_kinds():
    y = torch.tensor([0, 0, 1])
    edge_index = torch.tensor([[0, 1, 2, 2], [1, 0, 0, 2]])  # the last is a self-loop
    data = Data(edge_index=edge_index, edge_weight=torch.tensor([0.4, 0.6, 0.1, 9.0]), y=y)
    for axes in (edge_weight_histogram(data), edge_weight_histogram(_dense(data), y)):
        texts = [t.get_text() for t in axes.get_legend().get_texts()]
        assert texts == ["same class (2)", "other class (1)"]
        assert axes.get_xlim()[1] < 1


def _dense(data: Data) -> torch.Tensor:
    dense = torch.zeros(3, 3)
    dense[data.edge_index[1], data.edge_index[0]] = data.edge_weight
    return dense


@pytest.mark.parametrize("n", [1, 2, 4, 5, 40])
@pytest.mark.parametrize("method", ["tsne", "pca", "auto"])
def test_projection_of_any_size(n, method):
    x = torch.randn(n, 6)
    state = torch.get_rng_state(), np.random.get_state()[1].tolist()  # noqa: NPY002
    points = project(x, method)
    assert torch.equal(torch.get_rng_state(), state[0])
    assert np.random.get_state()[1].tolist() == state[1]  # noqa: NPY002
    assert points.shape == (n, 2)
    assert np.isfinite(points).all()
    np.testing.assert_array_equal(points, project(x, method))


def test_umap_where_it_is_missing(monkeypatch):
    """t-SNE in its place, unless it is asked for by name."""
    monkeypatch.setitem(sys.modules, "umap", None)
    x = torch.randn(9, 3)
    np.testing.assert_array_equal(project(x), project(x, "tsne"))
    for draw in (project, embedding_map):
        with pytest.raises(ModuleNotFoundError, match="pip install umap-learn"):
            draw(x, method="umap")


def test_umap_where_it_is_installed(monkeypatch):
    """It gets rows of length 1, a start and the seed, and its answer is centred."""
    told = {}

    class UMAP:
        def __init__(self, **options):
            told.update(options)

        def fit_transform(self, rows):
            told["rows"] = rows
            return rows[:, :2] + 5

    module = types.ModuleType("umap")
    module.UMAP = UMAP
    module.__spec__ = ModuleSpec("umap", None)
    monkeypatch.setitem(sys.modules, "umap", module)
    x = torch.randn(9, 3)
    points = project(x, seed=7)
    rows = torch.nn.functional.normalize(x).numpy()
    np.testing.assert_allclose(told["rows"], rows, rtol=1e-6)
    np.testing.assert_allclose(points, rows[:, :2] - rows[:, :2].mean(0), atol=1e-6)
    assert (told["n_neighbors"], told["random_state"], told["init"].shape) == (8, 7, (9, 2))


def test_projection_of_equal_rows():
    assert np.isfinite(project(torch.ones(8, 3))).all()


def test_map_with_thumbnails():
    axes = embedding_map(graph(20, 3), images=pictures(20), max_images=5)
    assert 1 <= len(axes.artists) <= 5
    embedding_map(torch.randn(9, 3))
    with pytest.raises(ValueError, match="`images`"):
        embedding_map(torch.randn(9, 3), images=pictures(8))


def test_scattered_points_keep_their_distance():
    points = np.array([[0.0, 0.0], [0.01, 0.0], [1.0, 0.0], [0.5, 0.0]])
    assert scattered(points, 10) == [0, 2, 3]
    assert scattered(points, 2) == [0, 2]


def test_retrieval_grid():
    x = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.1, 1.0]])
    figure = retrieval_grid(x, torch.tensor([0, 0, 1, 0]), pictures(4), [0, 3], 2, ["a$b", "c"])
    titles = [ax.get_title() for ax in figure.axes]
    assert titles == [r"a\$b", "✓", "✓", r"a\$b", "✗", "✓"]
    figure.canvas.draw()
    unknown = retrieval_grid(x, torch.tensor([0, 0, 1, -1]), pictures(4), [3], 2, ["a$b", "c"])
    assert [ax.get_title() for ax in unknown.axes] == ["?", "c", r"a\$b"]
    with pytest.raises(ValueError, match="`queries`"):
        retrieval_grid(x, torch.zeros(4).long(), pictures(4), [4])


def test_curves(tmp_path):
    rows = [{"epoch": e, "loss": 1 / e, "val_head_map@r": 0.1 * e} for e in (1, 2, 3)]
    figure = training_curves(rows)
    assert [ax.get_title() for ax in figure.axes] == ["loss", "retrieval on validation classes"]
    np.testing.assert_allclose(figure.axes[0].lines[0].get_ydata(), [1, 1 / 2, 1 / 3])
    figure = training_curves({"a": rows, "b": rows[:2]})
    assert len(figure.axes[0].lines) == 2
    (tmp_path / "metrics.csv").write_text("epoch,loss,loss_graph\n1,0.5,\n2,0.25,nan\n")
    assert read_history(tmp_path / "metrics.csv") == [
        {"epoch": 1.0, "loss": 0.5},
        {"epoch": 2.0, "loss": 0.25},
    ]
    assert len(training_curves(tmp_path / "metrics.csv").axes) == 1
    with pytest.raises(ValueError, match="`history`"):
        training_curves([])


@pytest.mark.slow
@pytest.mark.parametrize("labelled", [True, False])
def test_ten_thousand_nodes(labelled):
    """The plots answer all the same; the diagram shows a part and says so."""
    n = 10_000
    edge_index = torch.stack([torch.arange(n).repeat(5), torch.randint(0, n, (5 * n,))])
    y = torch.arange(n) % 100 if labelled else None
    data = Data(edge_index=edge_index, y=y, num_nodes=n)
    axes = draw_batch_graph(data, labels=[str(i) for i in range(n)])
    assert axes.get_xlabel().startswith("1,000 of 10,000 nodes")
    assert len(axes.texts) == 1000
    if labelled:
        assert [t.get_text() for t in axes.texts[:11]] == [*map(str, range(10)), "100"]
        assert adjacency_heatmap(data).images[0].get_array().shape == (2000, 2000)
    legend = [t.get_text() for t in edge_weight_histogram(data).get_legend().get_texts()]
    edges = int((edge_index[0] != edge_index[1]).sum())
    assert sum(int(text.rpartition("(")[2][:-1]) for text in legend) == edges


@pytest.mark.slow
def test_large_batch_stays_readable():
    """N = 405 with 30 neighbours: an edge budget, and a note that says so."""
    data = to_batch_graph(torch.randn(405, 16), torch.arange(405) // 9, AdaptiveGraph(30))
    axes = draw_batch_graph(data)
    assert axes.get_xlabel().startswith("the 600 strongest of ")
