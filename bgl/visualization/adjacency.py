"""Edge weights as a matrix and as a distribution."""

from __future__ import annotations

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from torch import Tensor
from torch_geometric.data import Data

from bgl._checks import check_index_vector, check_int, describe
from bgl.visualization._style import (
    OTHER_CLASS,
    SAME_CLASS,
    check_nodes,
    edge_weights,
    new_axes,
)

LARGEST = 2000  # rows of a heat map: beyond, neighbouring rows are averaged


def adjacency_heatmap(
    graph: Data | Tensor, y: Tensor | None = None, ax: Axes | None = None
) -> Axes:
    """Draw the adjacency as a heat map, rows sorted by class and each class framed.

    Row i shows from whom node i takes messages. A graph that follows the classes shows dark
    squares along the diagonal.

    Args:
        graph: A PyG graph, or a dense adjacency [N, N] with rows for targets.
        y: Labels [N]; default: those of the graph, if it has any.
        ax: Axes to draw on; default: a new figure.

    Returns:
        The axes.
    """
    dense = _dense(graph)
    n = len(dense)
    y = _labels(graph, y, n)
    order = torch.arange(n) if y is None else y.argsort(stable=True)
    dense = dense[order][:, order]
    step = -(-n // LARGEST)
    if step > 1:
        rest = -n % step
        dense = torch.nn.functional.pad(dense, (0, rest, 0, rest))
        dense = torch.nn.functional.avg_pool2d(dense[None], step)[0]
    ax = new_axes(ax, (6.5, 5.5))
    shown = ax.imshow(
        dense.numpy(), cmap="cividis_r", interpolation="nearest", extent=(0, n, n, 0), vmin=0
    )
    ax.figure.colorbar(shown, ax=ax, label="edge weight")
    ax.set_xlabel("source node" + ("" if y is None else ", sorted by class"))
    ax.set_ylabel("target node")
    if y is not None:
        _, counts = y.unique(return_counts=True)
        begin = 0
        for count in counts.tolist():
            if count > 1 and n / count <= 150:  # smaller frames would hide what they frame
                ax.add_patch(
                    Rectangle(
                        (begin, begin), count, count, fill=False, edgecolor=OTHER_CLASS, lw=0.8
                    )
                )
            begin += count
    return ax


def edge_weight_histogram(
    graph: Data | Tensor, y: Tensor | None = None, bins: int = 40, ax: Axes | None = None
) -> Axes:
    """Draw the distribution of edge weights, within classes and between them.

    Args:
        graph: A PyG graph, or a dense adjacency [N, N] with rows for targets, whose entries other
            than 0 are edges. Self-loops are left out.
        y: Labels [N]; default: those of the graph. Without labels all edges are one group.
        bins: Number of bins.
        ax: Axes to draw on; default: a new figure.

    Returns:
        The axes; its legend counts the edges of each kind.
    """
    check_int(bins, "bins", 1)
    n, source, target, weight = _edges(graph)
    y = _labels(graph, y, n)
    edge = source != target
    source, target, weight = source[edge], target[edge], weight[edge]
    ax = new_axes(ax)
    same = torch.ones_like(source).bool() if y is None else y[source] == y[target]
    limits = (float(weight.min()), float(weight.max())) if len(weight) else (0.0, 1.0)
    if limits[0] == limits[1]:
        limits = (min(0.0, limits[0]), max(1.0, 1.1 * limits[1]))
    edges = np.linspace(*limits, bins + 1)
    kinds = [(same, SAME_CLASS, "edges" if y is None else "same class", "")]
    if y is not None:
        kinds.append((~same, OTHER_CLASS, "other class", "///"))
    for kind, color, name, hatch in kinds:
        ax.hist(
            weight[kind].numpy(),
            bins=edges.tolist(),
            color=color,
            alpha=0.6,
            hatch=hatch,
            edgecolor="white",
            label=f"{name} ({int(kind.sum())})",
        )
    ax.set_xlabel("edge weight" if len(weight) else "the graph has no edges")
    ax.set_ylabel("edges")
    ax.legend(frameon=False)
    return ax


def _dense(graph: Data | Tensor) -> Tensor:
    """Return the adjacency [N, N] on the CPU, rows for targets."""
    if isinstance(graph, Data):
        n, source, target, weight = _edges(graph)
        return torch.zeros(n, n).index_put_((target, source), weight, accumulate=True)
    if not isinstance(graph, Tensor) or graph.dim() != 2 or graph.size(0) != graph.size(1):
        raise ValueError(
            "Expected argument `graph` to be a PyG Data or an adjacency of shape [N, N], "
            f"but got {describe(graph)}"
        )
    return graph.detach().float().cpu()


def _edges(graph: Data | Tensor) -> tuple[int, Tensor, Tensor, Tensor]:
    """Return the number of nodes, and source, target and weight [E] of the edges on the CPU."""
    if isinstance(graph, Data):
        n = check_nodes(graph)
        assert graph.edge_index is not None
        source, target = graph.edge_index.cpu()
        return n, source, target, edge_weights(graph)
    dense = _dense(graph)
    target, source = dense.nonzero().unbind(1)
    return len(dense), source, target, dense[target, source]


def _labels(graph: Data | Tensor, y: Tensor | None, n: int) -> Tensor | None:
    """Return the labels [N] given, or those of the graph, on the CPU."""
    if y is None and isinstance(graph, Data):
        y = graph.y
    if y is None:
        return None
    check_index_vector(y, n, "y")
    return y.cpu()
