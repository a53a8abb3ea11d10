"""Queries and what was found for them."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
import torch
from matplotlib.figure import Figure
from torch import Tensor

from bgl._checks import check_index_vector, check_int, check_matrix
from bgl._neighbors import nearest
from bgl.visualization._style import OTHER_CLASS, SAME_CLASS, check_images, hide_axes


def retrieval_grid(
    x: Tensor,
    y: Tensor,
    images: Tensor,
    queries: Sequence[int] | None = None,
    k: int = 8,
    names: Sequence[str] | None = None,
) -> Figure:
    """Draw queries, each with its ``k`` nearest other items by cosine.

    An item of the query's class has a solid blue frame and a tick, any other a dashed orange
    frame and a cross. For a query of unknown class the items bear the names of theirs.

    Args:
        x: Embeddings [N, C].
        y: Labels [N]; a negative one is unknown.
        images: Thumbnails, a uint8 tensor [N, 3, H, W].
        queries: Rows to look up; default: eight, spread evenly.
        k: Neighbours to show.
        names: Names of the classes by label, to write in place of the labels.

    Returns:
        The figure, a line per query.
    """
    check_matrix(x)
    check_index_vector(y, len(x), "y")
    check_images(images, len(x))
    k = min(check_int(k, "k", 1), len(x) - 1)
    if queries is None:
        queries = torch.linspace(0, len(x) - 1, min(8, len(x))).long().tolist()
    if not queries or not all(0 <= q < len(x) for q in queries):
        raise ValueError(
            f"Expected argument `queries` to be rows from 0 to {len(x) - 1}, got {queries!r}"
        )
    found = nearest(x, torch.tensor(list(queries)), k)
    figure, grid = plt.subplots(
        len(queries), k + 1, figsize=(1.1 * (k + 1), 1.2 * len(queries)), squeeze=False
    )
    for line, query, items in zip(grid, queries, found.tolist(), strict=True):
        for ax, item in zip(line, [query, *items], strict=True):
            ax.imshow(images[item].permute(1, 2, 0).cpu().numpy())
            hide_axes(ax)
            if ax is line[0] or y[query] < 0:
                ax.set_title(_name(int(y[item]), names), fontsize=7)
                continue
            right = bool(y[item] == y[query])
            color = SAME_CLASS if right else OTHER_CLASS
            style = "solid" if right else "dashed"
            ax.spines[:].set(visible=True, color=color, linewidth=3, linestyle=style)
            ax.set_title("✓" if right else "✗", color=color, fontsize=8, pad=2)
    figure.tight_layout()
    return figure


def _name(label: int, names: Sequence[str] | None) -> str:
    """Make a short title; a dollar sign would begin a formula."""
    if label < 0:
        return "?"
    return (str(label) if names is None else names[label]).replace("$", r"\$")[:20]
