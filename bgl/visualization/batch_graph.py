"""A batch graph as a node-link diagram."""

from __future__ import annotations

from typing import Any

import matplotlib.pyplot as plt
import networkx as nx
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.lines import Line2D
from matplotlib.offsetbox import AnnotationBbox, OffsetImage
from torch import Tensor
from torch_geometric.data import Data

from bgl._checks import check_int, describe

# Okabe and Ito's palette: told apart with any kind of colour vision
SAME_CLASS = "#0072B2"
OTHER_CLASS = "#D55E00"
NODES = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7", "#999999")


def draw_batch_graph(
    data: Data,
    images: Tensor | None = None,
    max_edges: int = 600,
    seed: int = 0,
    ax: Axes | None = None,
) -> Axes:
    """Draw a learned batch graph: samples as nodes, edges as wide as their weight.

    Edges within a class are blue and solid, edges between classes orange and dashed; without
    labels all are drawn alike. The two directions between a pair of nodes are drawn as one edge
    with the larger weight, and nodes that attract each other lie close together (a spring layout
    with the weights as forces, evened out so that nodes do not cover each other). Where there are
    more than ``max_edges`` edges the weakest are left out, and a note says how many.

    Args:
        data: A graph with ``edge_index`` and, optionally, ``edge_weight`` [E] or [E, H] (the
            mean over heads is drawn) and ``y``; for instance from :func:`bgl.to_batch_graph`.
        images: Thumbnails, a uint8 tensor [N, 3, H, W]; without them nodes are dots, coloured
            by class.
        max_edges: Most edges to draw.
        seed: Seed of the layout.
        ax: Axes to draw on; default: a new figure.

    Returns:
        The axes.

    Raises:
        ValueError: If there are no nodes, or ``images`` or ``max_edges`` do not fit.
    """
    n = int(data.num_nodes or 0)
    if n == 0:
        raise ValueError("Expected argument `data` to have at least one node, but got none")
    if images is not None and (images.dtype != torch.uint8 or images.shape[:2] != (n, 3)):
        raise ValueError(
            f"Expected argument `images` to be a uint8 tensor of shape [{n}, 3, H, W], "
            f"but got {describe(images)}"
        )
    check_int(max_edges, "max_edges", 0)
    edges = _undirected(data)
    shown = sorted(edges.items(), key=lambda edge: -edge[1])[:max_edges]
    graph = nx.Graph()
    graph.add_nodes_from(range(n))
    graph.add_weighted_edges_from((i, j, weight) for (i, j), weight in shown)
    position = _spread(nx.spring_layout(graph, seed=seed, iterations=120))

    if ax is None:
        _, ax = plt.subplots(figsize=(9, 9), layout="constrained")
    y = None if data.y is None else data.y.tolist()
    largest = max((weight for _, weight in shown), default=1.0) or 1.0
    legend = []
    for same, color, style, name in (
        (True, SAME_CLASS, "solid", "edge" if y is None else "same class"),
        (False, OTHER_CLASS, (0, (3, 2)), "other class"),
    ):
        kind = [(e, w) for e, w in shown if (y is None or y[e[0]] == y[e[1]]) == same]
        if kind:
            ax.add_collection(
                LineCollection(
                    [[position[i], position[j]] for (i, j), _ in kind],
                    linewidths=[0.3 + 3.2 * weight / largest for _, weight in kind],
                    colors=color,
                    linestyles=style,
                    alpha=0.65,
                    zorder=1,
                )
            )
            legend.append(Line2D([], [], color=color, linestyle=style, label=name))
    _draw_nodes(ax, position, images, y)
    if legend:
        ax.legend(handles=legend, loc="upper right", frameon=False)
    if len(edges) > len(shown):
        ax.set_xlabel(f"the {len(shown)} strongest of {len(edges)} edges")
    ax.set_xticks([])
    ax.set_yticks([])
    ax.margins(0.06)
    ax.set_aspect("equal")
    for spine in ax.spines.values():
        spine.set_visible(False)
    return ax


def _spread(position: dict[int, Any]) -> dict[int, Any]:
    """Fill the unit square and push nodes apart that would cover each other."""
    points = np.array([position[i] for i in range(len(position))])
    ranks = points.argsort(axis=0).argsort(axis=0) / max(len(points) - 1, 1)
    extent = np.ptp(points, axis=0) + 1e-9
    points = 0.5 * (points - points.min(axis=0)) / extent + 0.5 * ranks
    smallest = 0.9 / len(points) ** 0.5
    for _ in range(100):
        apart = points[:, None] - points[None, :]
        distance = np.linalg.norm(apart, axis=2) + np.eye(len(points))
        push = np.clip(smallest - distance, 0, None) / distance
        points = points + 0.25 * (push[:, :, None] * apart).sum(axis=1)
    return dict(enumerate(points))


def _undirected(data: Data) -> dict[tuple[int, int], float]:
    """Weight of each pair (i < j) of nodes; self-loops left out."""
    assert data.edge_index is not None
    weight = data.get("edge_weight")
    if weight is None:
        weight = torch.ones(data.edge_index.size(1))
    weight = weight.detach().float()
    if weight.dim() == 2:
        weight = weight.mean(1)
    edges: dict[tuple[int, int], float] = {}
    for (j, i), w in zip(data.edge_index.t().tolist(), weight.tolist(), strict=True):
        if i != j:
            pair = (min(i, j), max(i, j))
            edges[pair] = max(w, edges.get(pair, 0.0))
    return edges


def _draw_nodes(
    ax: Axes, position: dict[int, Any], images: Tensor | None, y: list[int] | None
) -> None:
    classes = {} if y is None else {label: k for k, label in enumerate(dict.fromkeys(y))}
    colors = [NODES[classes[label] % len(NODES)] for label in y] if y is not None else NODES[1]
    points = [position[i] for i in range(len(position))]
    across, up = zip(*points, strict=True)
    ax.scatter(across, up, c=colors, s=80, edgecolors="white", zorder=2)
    if images is None:
        return
    side = max(12, min(34, 240 / len(points) ** 0.5))  # points: smaller in larger batches
    for i, image in enumerate(images):
        picture = OffsetImage(image.permute(1, 2, 0).numpy(), zoom=side / image.size(1))
        frame = {
            "edgecolor": colors[i] if y is not None else colors,
            "linewidth": 1.5,
            "boxstyle": "round,pad=0.15",
        }
        ax.add_artist(AnnotationBbox(picture, points[i], pad=0, bboxprops=frame, zorder=3))
