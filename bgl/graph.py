"""Between tensors and PyTorch Geometric's ``Data``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch_geometric.data import Data

from bgl._checks import check_callable, check_index_vectors, check_matrix
from bgl.layers.adaptive_graph import AdaptiveGraph
from bgl.layers.pairs import Graph


def to_batch_graph(
    x: Tensor,
    y: Tensor | None = None,
    learner: Callable[..., Graph] | None = None,
    **attributes: Any,
) -> Data:
    """Turn the features of a mini-batch into a PyG graph.

    Args:
        x: Features [N, C], the node features.
        y: Integer labels [N] or None.
        learner: Called as ``learner(x, y=y)``, or ``learner(x, y=y, batch=batch)`` when a
            ``batch`` vector is among the attributes; returns ``(edge_index, edge_weight)``. One
            that learns from less names it in ``learns_from``, what it is given by position first,
            as ``LabelGraph`` does: ``("y", "batch")``.
            Default: ``AdaptiveGraph()``.
        attributes: Stored on the graph as they are (for instance ``batch=``, ``image_id=``).

    Returns:
        ``Data(x, edge_index, edge_weight, y, **attributes)``; ``edge_weight`` carries the gradient
        of the learner to ``x``.

    Raises:
        ValueError: If ``x`` or ``y`` has the wrong type, rank or length, or ``learner`` cannot be
            called or is a class.

    Example:
        >>> import torch
        >>> to_batch_graph(torch.randn(6, 4), learner=AdaptiveGraph(k=2))
        Data(x=[6, 4], edge_index=[2, 12], edge_weight=[12])
    """
    check_matrix(x)
    check_index_vectors(x.size(0), y=y)
    learner = AdaptiveGraph() if learner is None else learner
    check_callable(learner, "learner")
    given: dict[str, Any] = {"x": x, "y": y}
    if attributes.get("batch") is not None:
        given["batch"] = attributes["batch"]
    wanted = getattr(learner, "learns_from", ("x", "y", "batch"))
    first, *others = (name for name in wanted if name in given)
    edge_index, edge_weight = learner(given[first], **{name: given[name] for name in others})
    return Data(x=x, edge_index=edge_index, edge_weight=edge_weight, y=y, **attributes)
