"""A batch graph as a node-link diagram."""

from __future__ import annotations

import math
from collections.abc import Sequence

import networkx as nx
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.lines import Line2D
from torch import Tensor
from torch_geometric.data import Data

from bgl._checks import check_choice, check_int
from bgl.visualization._sample import induced, sample_nodes
from bgl.visualization._style import (
    NODES,
    OTHER_CLASS,
    SAME_CLASS,
    check_images,
    check_nodes,
    class_colors,
    edge_weights,
    hide_axes,
    new_axes,
    place_images,
)
from bgl.visualization.projection import project

Edge = tuple[tuple[int, int], float]  # two nodes, and the weight between them


def draw_batch_graph(
    data: Data,
    images: Tensor | None = None,
    max_edges: int = 600,
    seed: int = 0,
    ax: Axes | None = None,
    layout: str = "spring",
    labels: Sequence[str] | None = None,
) -> Axes:
    """Draw a learned batch graph: samples as nodes, edges as wide as their weight.

    Edges within a class are blue and solid, edges between classes orange and dashed; without
    labels all are drawn alike. The two directions between a pair of nodes are drawn as one edge
    with the larger weight. Where there are more than ``max_edges`` edges the weakest are left
    out, and of more than 1,000 nodes some are drawn (whole classes, or the surroundings of the
    node with the most edges); a note under the picture says so.

    Args:
        data: A graph with ``edge_index`` and, optionally, ``edge_weight`` [E] or [E, H] (the
            mean over heads is drawn), ``y`` and ``x``; for instance from
            :func:`bgl.to_batch_graph`.
        images: Thumbnails, a uint8 tensor [N, 3, H, W]; without them nodes are dots, coloured
            by class.
        max_edges: Most edges to draw.
        seed: Seed of the layout.
        ax: Axes to draw on; default: a new figure.
        layout: "spring": nodes that attract each other lie close together, with the weights as
            forces; "embedding": nodes with similar features ``x`` do
            (:func:`~bgl.visualization.project`). Both are evened out so that nodes do not cover
            each other.
        labels: A text to write under every node.

    Returns:
        The axes.

    Raises:
        ValueError: If there are no nodes, ``layout="embedding"`` has no ``x`` to go by, or an
            argument does not fit.
    """
    n = check_nodes(data)
    check_images(images, n)
    check_int(max_edges, "max_edges", 0)
    check_int(seed, "seed", 0)
    check_choice(layout, "layout", ("spring", "embedding"))
    if labels is not None and len(labels) != n:
        raise ValueError(
            f"Expected argument `labels` to have one entry per node ({n}), but got {len(labels)}"
        )
    total = n
    chosen = sample_nodes(data)
    if len(chosen) < n:
        n, data = len(chosen), induced(data, chosen)
        images = None if images is None else images[chosen]
        labels = None if labels is None else [labels[i] for i in chosen.tolist()]
    assert data.edge_index is not None
    source, target = data.edge_index
    edges = undirected(source, target, edge_weights(data))
    shown = edges[:max_edges]
    if layout == "embedding":
        if data.x is None:
            raise ValueError('Expected argument `data` to have features `x` for "embedding"')
        points = separate_nodes(project(data.x, seed=seed))
    else:
        points = separate_nodes(spring_layout(n, shown, seed))

    ax = new_axes(ax, (9, 9))
    y = None if data.y is None else data.y.tolist()
    legend = _draw_edges(ax, points, shown, y)
    colors = [NODES[1]] * n if y is None else class_colors(y)
    side = max(12, min(34, 240 / n**0.5))  # points: smaller in larger batches
    dot = 80 if n <= 150 else 36
    ax.scatter(points[:, 0], points[:, 1], c=colors, s=dot, edgecolors="white", zorder=2)
    if images is not None:
        place_images(ax, points, images, side, colors)
    for point, text in zip(points, labels or (), strict=False):
        ax.annotate(
            # a dollar sign would begin a formula
            text.replace("$", r"\$"),
            tuple(point),
            xytext=(0, -(6 if images is None else 0.6 * side + 3)),
            textcoords="offset points",
            ha="center",
            va="top",
            fontsize=7 if n <= 150 else 5,
            zorder=4,
        )
    if legend:
        ax.legend(handles=legend, loc="upper right", frameon=False)
    notes = [f"{n:,} of {total:,} nodes"] if n < total else []
    if len(edges) > len(shown):
        notes.append(f"the {len(shown)} strongest of {len(edges)} edges")
    ax.set_xlabel("; ".join(notes))
    hide_axes(ax)
    ax.margins(0.06)
    ax.set_aspect("equal")
    return ax


def _draw_edges(
    ax: Axes, points: np.ndarray, edges: Sequence[Edge], y: list[int] | None
) -> list[Line2D]:
    """Draw edges within classes and between them, and return what to put into a legend."""
    largest = max((weight for _, weight in edges), default=1.0) or 1.0
    legend = []
    for same, color, style, name in (
        (True, SAME_CLASS, "solid", "edge" if y is None else "same class"),
        (False, OTHER_CLASS, (0, (3, 2)), "other class"),
    ):
        kind = [(e, w) for e, w in edges if (y is None or y[e[0]] == y[e[1]]) == same]
        if kind:
            ax.add_collection(
                LineCollection(
                    [[tuple(points[i]), tuple(points[j])] for (i, j), _ in kind],
                    linewidths=[0.3 + 3.2 * max(weight, 0.0) / largest for _, weight in kind],
                    colors=color,
                    linestyles=style,
                    alpha=0.65,
                    zorder=1,
                )
            )
            legend.append(Line2D([], [], color=color, linestyle=style, label=name))
    return legend


def undirected(
    source: Tensor | np.ndarray, target: Tensor | np.ndarray, weight: Tensor | np.ndarray
) -> list[Edge]:
    """Return the larger weight of each pair (i < j) of nodes, the largest first; no self-loops."""
    edges: dict[tuple[int, int], float] = {}
    for j, i, w in zip(source.tolist(), target.tolist(), weight.tolist(), strict=True):
        if i != j:
            pair = (min(i, j), max(i, j))
            edges[pair] = max(w, edges.get(pair, -math.inf))
    return sorted(edges.items(), key=lambda edge: -edge[1])


def spring_layout(
    n: int,
    edges: Sequence[Edge],
    seed: int = 0,
    start: np.ndarray | None = None,
) -> np.ndarray:
    """Lay out points [n, 2], with heavier edges pulling harder, from ``start`` if given."""
    graph = nx.Graph()
    graph.add_nodes_from(range(n))
    graph.add_weighted_edges_from((i, j, max(weight, 0.0)) for (i, j), weight in edges)
    begin = None if start is None else dict(enumerate(start))
    rounds = 120 if n < 500 else max(5, 30_000 // n)  # a round takes time in n²
    position = nx.spring_layout(graph, pos=begin, seed=seed, iterations=rounds)
    return np.array([position[i] for i in range(n)])


def separate_nodes(points: np.ndarray) -> np.ndarray:
    """Fill the unit square and push nodes apart that would cover each other."""
    ranks = points.argsort(axis=0).argsort(axis=0) / max(len(points) - 1, 1)
    extent = np.ptp(points, axis=0) + 1e-9
    points = 0.5 * (points - points.min(axis=0)) / extent + 0.5 * ranks
    smallest = 0.9 / len(points) ** 0.5
    for _ in range(min(100, 20_000_000 // len(points) ** 2 if len(points) <= 2000 else 0)):
        apart = points[:, None] - points[None, :]
        distance = np.linalg.norm(apart, axis=2) + np.eye(len(points))
        push = np.clip(smallest - distance, 0, None) / distance
        points = points + 0.25 * (push[:, :, None] * apart).sum(axis=1)
    return points
