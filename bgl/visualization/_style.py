"""Colours and small helpers shared by the plots."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.offsetbox import AnnotationBbox, OffsetImage
from torch import Tensor
from torch_geometric.data import Data

from bgl._checks import check_index_vectors, check_within, describe

# Okabe and Ito's palette: distinguishable with any kind of colour vision
SAME_CLASS = "#0072B2"
OTHER_CLASS = "#D55E00"
NODES = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7", "#999999")


def new_axes(ax: Axes | None, size: tuple[float, float] = (7, 5)) -> Axes:
    """Return ``ax``, or the axes of a new figure."""
    if ax is not None:
        return ax
    _, made = plt.subplots(figsize=size, layout="constrained")
    return made


def hide_axes(ax: Axes) -> None:
    """Leave out ticks and frame."""
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set_visible(False)


def check_images(images: Tensor | None, n: int) -> None:
    """Raise unless ``images`` is None or a uint8 tensor [n, 3, H, W]."""
    if images is None:
        return
    ok = isinstance(images, Tensor) and images.dtype == torch.uint8 and images.dim() == 4
    if not ok or images.shape[:2] != (n, 3):
        raise ValueError(
            f"Expected argument `images` to be a uint8 tensor of shape [{n}, 3, H, W], "
            f"but got {describe(images)}"
        )


def check_nodes(data: Data) -> int:
    """Return the number of nodes of a graph, and check that its edges and labels fit.

    Raises:
        ValueError: If there are no nodes, an edge leads outside, or weights or labels are too
            many or too few.
    """
    n = int(data.num_nodes or 0)
    if n == 0:
        raise ValueError("Expected argument `data` to have at least one node, but got none")
    edge_index = data.edge_index
    if edge_index is None or edge_index.dim() != 2 or edge_index.size(0) != 2:
        raise ValueError(
            "Expected argument `data` to have an `edge_index` of shape [2, E], "
            f"but got {describe(edge_index)}"
        )
    check_within(edge_index, "edge_index", 0, n - 1, "nodes")
    weight = data.get("edge_weight")
    if weight is not None and weight.size(0) != edge_index.size(1):
        raise ValueError(
            f"Expected `edge_weight` to have one entry per edge ({edge_index.size(1)}), "
            f"but got {describe(weight)}"
        )
    check_index_vectors(n, y=data.y)
    return n


def edge_weights(data: Data) -> Tensor:
    """Return the weight [E] of every edge on the CPU: the mean over heads, 1 without weights.

    A weight that is not finite counts as 0.
    """
    assert data.edge_index is not None
    weight = data.get("edge_weight")
    if weight is None:
        return torch.ones(data.edge_index.size(1))
    weight = weight.detach().float().cpu().nan_to_num(0.0, 0.0, 0.0)
    return weight.mean(1) if weight.dim() == 2 else weight


def class_colors(y: list[int]) -> list[str]:
    """Choose a colour for every sample; they repeat after eight classes."""
    order = {label: k for k, label in enumerate(dict.fromkeys(y))}
    return [NODES[order[label] % len(NODES)] for label in y]


def place_images(
    ax: Axes, points: np.ndarray, images: Tensor, side: float, frames: list[str]
) -> None:
    """Draw images, ``side`` points wide, with a coloured frame each."""
    for point, image, color in zip(points, images, frames, strict=True):
        picture = OffsetImage(image.permute(1, 2, 0).cpu().numpy(), zoom=side / image.size(1))
        frame = {"edgecolor": color, "linewidth": 1.5, "boxstyle": "round,pad=0.15"}
        ax.add_artist(AnnotationBbox(picture, tuple(point), pad=0, bboxprops=frame, zorder=3))
