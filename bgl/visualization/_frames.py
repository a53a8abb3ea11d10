"""Learned graphs in the form in which a run keeps them and the explorer page shows them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch_geometric.data import Data

from bgl.visualization._encode import text64, weights64
from bgl.visualization._style import edge_weights
from bgl.visualization.batch_graph import Edge, separate_nodes, spring_layout, undirected

EDGES_PER_NODE = 30  # more are not kept: the weakest go first
LAYOUT_EDGES = 1200


@dataclass
class Frame:
    """One graph, learned by one block in one epoch."""

    source: np.ndarray  # [E]
    target: np.ndarray  # [E]
    weight: np.ndarray  # [E]
    total: int  # edges before the weakest were left out
    epoch: int | None = None
    block: int = 0
    iteration: int = 0


def make_frame(data: Data, epoch: int | None = None) -> Frame:
    """Keep the strongest edges of a graph, without self-loops."""
    assert data.edge_index is not None
    source, target = data.edge_index.detach().cpu()
    weight = edge_weights(data)
    edge = (source != target).nonzero().flatten()
    limit = EDGES_PER_NODE * int(data.num_nodes or 0)
    kept = edge
    if len(edge) > limit:
        kept = edge[weight[edge].argsort(descending=True, stable=True)[:limit]]
    return Frame(
        source[kept].numpy().astype(np.uint16),
        target[kept].numpy().astype(np.uint16),
        weight[kept].numpy().astype(np.float32),
        len(edge),
        epoch,
        int(data.get("block") or 0),
        int(data.get("iteration") or 0),
    )


def unpack_frames(arrays: Mapping[str, np.ndarray]) -> list[Frame]:
    """Read the graphs from the arrays of an ``explorer.npz``."""
    if len(arrays.get("edges", ())) == 0:
        return []
    cuts = np.cumsum(arrays["edges"])[:-1]
    parts = [np.split(arrays[name], cuts) for name in ("source", "target", "weight")]
    rows = zip(*parts, arrays["total"].tolist(), arrays["moment"].tolist(), strict=True)
    return [Frame(s, t, w, total, *moment) for s, t, w, total, moment in rows]


def graph_payload(
    name: str,
    frames: Sequence[Frame],
    labels: Sequence[int] | None,
    classes: Sequence[str],
    nodes: Sequence[str],
    atlas: str | None,
    notes: Sequence[str] = (),
) -> dict[str, Any]:
    """Describe graphs over the same nodes as the page needs it.

    Args:
        name: Of the model.
        frames: The graphs in their order; those of one epoch share the node positions, which
            follow from the last of them.
        labels: Ids into ``classes``, or None.
        classes: Names of the classes.
        nodes: A text for each node.
        atlas: Name of the sheet with the nodes' pictures, or None.
        notes: What the reader should know about this graph.
    """
    last = {frame.epoch: frame for frame in frames}
    epochs = list(last)
    positions: list[np.ndarray] = []
    for frame in last.values():
        start = positions[-1] if positions else None
        positions.append(spring_layout(len(nodes), _strongest(frame), start=start))
    return {
        "name": name,
        "n": len(nodes),
        "labels": None if labels is None else list(labels),
        "classes": list(classes),
        "nodes": list(nodes),
        "atlas": atlas,
        "notes": list(notes),
        "positions": [text64(separate_nodes(points).ravel(), "f4") for points in positions],
        "frames": [
            {
                "epoch": frame.epoch,
                "block": frame.block,
                "iteration": frame.iteration,
                "position": epochs.index(frame.epoch),
                "total": frame.total,
                "source": text64(frame.source, "u2"),
                "target": text64(frame.target, "u2"),
                **weights64(frame.weight),
            }
            for frame in frames
        ],
    }


def _strongest(frame: Frame) -> list[Edge]:
    """Return the strongest edges between two nodes, scaled to 1, for the layout."""
    edges = undirected(frame.source, frame.target, frame.weight)[:LAYOUT_EDGES]
    largest = max((weight for _, weight in edges), default=0.0)
    return [(pair, weight / largest) for pair, weight in edges] if largest > 0 else edges
