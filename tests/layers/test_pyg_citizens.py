"""The layers among PyG's own: Sequential, Data and Batch, every kind of adjacency, GNNExplainer."""

from __future__ import annotations

import pytest
import torch
from helpers import assert_close
from torch import Tensor, nn
from torch_geometric import EdgeIndex
from torch_geometric.data import Batch, Data
from torch_geometric.explain import Explainer, GNNExplainer
from torch_geometric.nn import Sequential

from bgl import to_batch_graph
from bgl.layers import (
    AdaptiveGraph,
    AttentionGraph,
    BatchFormerBlock,
    BatchGraphConv,
    BGFormerBlock,
    DyBGR,
    DyBGRBlock,
    LabelGraph,
)

N, C, HEADS = 10, 8, 2


def data(n: int = N) -> Data:
    return Data(x=torch.randn(n, C, dtype=torch.float64), y=torch.arange(n) % 3)


@pytest.fixture(autouse=True)
def _own_forward(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyG's Sequential writes the forward of its last instance on the class."""
    monkeypatch.setattr(Sequential, "forward", Sequential.forward)


class ByName(nn.Module):
    """What PyG's Sequential passes by position, passed on by name."""

    def __init__(self, layer: nn.Module, *names: str) -> None:
        super().__init__()
        self.layer, self.names = layer, names

    def forward(self, x: Tensor, *others: Tensor | None) -> object:
        return self.layer(x, **dict(zip(self.names, others, strict=True)))


class Heads(nn.Module):
    """[N, C] as [N, HEADS, C / HEADS]."""

    def forward(self, x: Tensor) -> Tensor:
        return x.view(len(x), HEADS, -1)


BLOCKS = {
    "DyBGR": DyBGR(3),
    "DyBGRBlock": DyBGRBlock(C, k=3),
    "DyBGRBlock, GraphNorm": DyBGRBlock(C, k=3, norm="graph"),
    "BGFormerBlock": BGFormerBlock(C, HEADS, k=3),
    "BGFormerBlock, attention": BGFormerBlock(C, HEADS, k=3, semantic="attention"),
    "BatchFormerBlock": BatchFormerBlock(C, HEADS),
}
GRAPHS = {
    "AdaptiveGraph": [
        (ByName(AdaptiveGraph(3), "y", "batch"), "x, y, batch -> edge_index, edge_weight"),
        (BatchGraphConv(), "x, edge_index, edge_weight -> x"),
    ],
    "LabelGraph": [
        (ByName(LabelGraph(), "batch"), "y, batch -> edge_index, edge_weight"),
        (BatchGraphConv(), "x, edge_index, edge_weight -> x"),
    ],
    "AttentionGraph": [
        (Heads(), "x -> v"),
        (
            lambda v, batch: AttentionGraph(3)(v, v, batch=batch),
            "v, batch -> edge_index, edge_weight",
        ),
        (BatchGraphConv(1.0), "v, edge_index, edge_weight -> v"),
        (nn.Flatten(), "v -> x"),
    ],
}


def sequential(name: str) -> nn.Module:
    """The layer between two linear ones, in PyG's Sequential."""
    middle = (
        [(ByName(BLOCKS[name], "y", "batch"), "x, y, batch -> x")]
        if name in BLOCKS
        else GRAPHS[name]
    )
    ends = [(nn.Linear(C, C), "x -> x")], [(nn.Linear(C, 4), "x -> x")]
    return Sequential("x, y, batch", [*ends[0], *middle, *ends[1]]).double()


@pytest.mark.parametrize("name", [*BLOCKS, *GRAPHS])
def test_in_sequential_on_data_and_batch(name):
    """What a graph gives is the same alone and in a batch, and the gradient arrives."""
    model = sequential(name)
    graphs = [data(), data(7), data(12)]
    batch = Batch.from_data_list(graphs)
    out = model(batch.x, batch.y, batch.batch)
    alone = torch.cat([model(graph.x, graph.y, graph.batch) for graph in graphs])
    assert_close(out, alone)
    out.square().sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())
    assert float(next(model.parameters()).grad.abs().sum()) > 0


@pytest.mark.parametrize("layer", [AdaptiveGraph(3), *BLOCKS.values()], ids=str)
def test_graph_numbers_are_never_taken_for_labels(layer):
    """PyG's habit is layer(x, batch); here the second place is nobody's."""
    with pytest.raises(TypeError, match="positional argument"):
        layer(torch.randn(N, C), torch.zeros(N).long())


def adjacencies(edge_index: Tensor, weight: Tensor) -> dict[str, tuple[object, ...]]:
    """The graph in every form, as the arguments after the features; rows are targets."""
    size = (N, N, *weight.shape[1:])
    counts = edge_index[1].bincount(minlength=N)
    rows = torch.cat([counts.new_zeros(1), counts.cumsum(0)])  # edges are sorted by target
    return {
        "EdgeIndex": (EdgeIndex(edge_index, sparse_size=(N, N), sort_order="col"), weight),
        "COO": (torch.sparse_coo_tensor(edge_index.flip(0), weight, size).coalesce(),),
        "CSR": (torch.sparse_csr_tensor(rows, edge_index[0], weight, size),),
    }


def sparse_tensor(edge_index: Tensor, weight: Tensor) -> tuple[object, ...]:
    torch_sparse = pytest.importorskip(
        "torch_sparse", reason="torch-sparse is not installed (bgl[sparse])"
    )
    target = torch_sparse.SparseTensor(
        row=edge_index[1], col=edge_index[0], value=weight, sparse_sizes=(N, N)
    )
    return (target,)


def graph_of(heads: bool) -> tuple[Tensor, Tensor, Tensor]:
    x = data().x
    value = x.view(N, HEADS, -1)
    edge_index, weight = AttentionGraph(3)(value, value) if heads else AdaptiveGraph(3)(x)
    order = (edge_index[1] * N + edge_index[0]).argsort()  # as sparse layouts have it
    return x, edge_index[:, order], weight[order].detach().requires_grad_()


@pytest.mark.parametrize("form", ["EdgeIndex", "COO", "CSR", "SparseTensor"])
@pytest.mark.parametrize("heads", [False, True], ids=["BatchGraphConv", "attention"])
def test_every_kind_of_adjacency(form, heads):
    """The same output and the same gradients as on an edge list."""
    x, edge_index, weight = graph_of(heads)
    layer = BatchGraphConv(0.7)
    features = x.view(N, HEADS, -1) if heads else x
    features.requires_grad_()
    if form == "SparseTensor":
        graph = sparse_tensor(edge_index, weight)
    else:
        graph = adjacencies(edge_index, weight)[form]
    expected, actual = layer(features, edge_index, weight), layer(features, *graph)
    assert_close(actual, expected)
    for leaf in (features, weight):
        one, other = (
            torch.autograd.grad(out.square().sum(), leaf, retain_graph=True)[0]
            for out in (actual, expected)
        )
        assert_close(one, other)


def test_one_weight_for_all_heads():
    x, edge_index, weight = graph_of(False)
    value = x.view(N, HEADS, -1)
    attend = BatchGraphConv(1.0)
    graph = adjacencies(edge_index, weight)["CSR"]
    assert_close(attend(value, *graph), attend(value, edge_index, weight))


def test_learned_graphs_as_edge_index_are_sorted_by_target():
    """So PyG's fast paths for sorted edges can be used on them."""
    edge_index, _ = AdaptiveGraph(3)(data().x)
    EdgeIndex(edge_index, sparse_size=(N, N), sort_order="col").validate()


class OneLayer(nn.Module):
    """A convolution on a graph, and a number for each node."""

    def __init__(self, conv: str) -> None:
        super().__init__()
        self.conv = BatchGraphConv()
        self.heads = conv == "attention"
        self.linear = nn.Linear(C, 1)

    def forward(self, x: Tensor, edge_index: Tensor, edge_weight: Tensor) -> Tensor:
        value = x.view(len(x), HEADS, -1) if self.heads else x
        return self.linear(self.conv(value, edge_index, edge_weight).flatten(1))


@pytest.mark.parametrize("conv", ["BatchGraphConv", "attention"])
def test_explained_on_the_learned_graph(conv):
    """GNNExplainer finds what must be so: only edges into the node can matter, and the one from
    the neighbour with large features does."""
    x = torch.randn(N, C)
    graph = to_batch_graph(x, learner=AdaptiveGraph(3))
    edge_index, weight = graph.edge_index, torch.ones_like(graph.edge_weight)
    into = (edge_index[1] == 0).nonzero().flatten()
    x[edge_index[0, into]] = torch.tensor([0.01, 3.0, 0.01])[:, None]
    explainer = Explainer(
        OneLayer(conv),
        GNNExplainer(epochs=50, lr=0.1),
        explanation_type="model",
        edge_mask_type="object",
        model_config={"mode": "regression", "task_level": "node"},
    )
    mask = explainer(x, edge_index, edge_weight=weight, index=0).edge_mask
    assert set(mask.nonzero().flatten().tolist()) <= set(into.tolist())
    assert mask[into[1]] > 0.5
