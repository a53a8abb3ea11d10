"""Embeddings as a map."""

from __future__ import annotations

import numpy as np
import torch
from matplotlib.axes import Axes
from torch import Tensor
from torch_geometric.data import Data

from bgl._checks import check_index_vectors, check_int, check_matrix
from bgl.visualization._style import (
    NODES,
    check_images,
    class_colors,
    hide_axes,
    new_axes,
    place_images,
)
from bgl.visualization.projection import project

MARKERS = "osD^vP*X"


def embedding_map(
    x: Tensor | Data,
    y: Tensor | None = None,
    images: Tensor | None = None,
    method: str = "auto",
    max_images: int = 150,
    seed: int = 0,
    ax: Axes | None = None,
) -> Axes:
    """Draw embeddings on a plane, near ones near each other.

    Classes differ by colour and, beyond eight, by marker.

    Args:
        x: Embeddings [N, C], or a PyG graph with ``x`` and, optionally, ``y``.
        y: Labels [N].
        images: Thumbnails, a uint8 tensor [N, 3, H, W]. Of images that would cover each other
            only the first is drawn.
        method: "tsne", "umap" (with umap-learn), "pca" or "auto" (UMAP where it is installed,
            else t-SNE), see :func:`~bgl.visualization.project`.
        max_images: Most thumbnails to draw.
        seed: Seed of the projection.
        ax: Axes to draw on; default: a new figure.

    Returns:
        The axes.
    """
    if isinstance(x, Data):
        x, y = x.x, x.y if y is None else y
    check_matrix(x)
    check_index_vectors(len(x), y=y)
    check_images(images, len(x))
    check_int(max_images, "max_images", 0)
    points = project(x, method, seed)
    ax = new_axes(ax, (8, 8))
    size = 30 if len(x) <= 1000 else 10
    if y is None:
        classes, colors = torch.zeros(len(x)).long(), [NODES[4]] * len(x)
    else:
        classes = y.unique(return_inverse=True)[1].cpu()
        colors = class_colors(classes.tolist())
    shape = (classes // len(NODES)) % len(MARKERS)
    for kind in shape.unique().tolist():
        chosen = (shape == kind).nonzero().flatten().tolist()
        ax.scatter(
            points[chosen, 0],
            points[chosen, 1],
            s=size,
            c=[colors[i] for i in chosen],
            marker=MARKERS[kind],
            linewidths=0,
        )
    if images is not None:
        chosen = scattered(points, max_images)
        frames = [colors[i] for i in chosen]
        place_images(ax, points[chosen], images[torch.tensor(chosen)], 20, frames)
    hide_axes(ax)
    ax.margins(0.05)
    return ax


def scattered(points: np.ndarray, most: int, gap: float = 0.05) -> list[int]:
    """Choose up to ``most`` points, further apart than ``gap`` of the map's width."""
    extent = float(np.ptp(points, axis=0).max()) or 1.0
    chosen: list[int] = []
    for i, point in enumerate(points):
        if len(chosen) == most:
            break
        if not chosen or np.abs(points[chosen] - point).max(axis=1).min() > gap * extent:
            chosen.append(i)
    return chosen
