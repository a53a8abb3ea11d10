"""Learned graphs as a transform of PyTorch Geometric's ``Data``."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch_geometric.data import Batch, Data
from torch_geometric.transforms import BaseTransform

from bgl._checks import check_callable, describe
from bgl.graph import to_batch_graph
from bgl.layers.adaptive_graph import AdaptiveGraph
from bgl.layers.pairs import Graph


class LearnBatchGraph(BaseTransform):  # type: ignore[misc]
    r"""Puts a learned graph on the nodes of a ``Data`` or ``Batch``.

    ``edge_index`` and ``edge_weight`` become those of :func:`bgl.to_batch_graph`; edges that the
    data had before are dropped, with their ``edge_attr`` and ``adj_t``. With a ``batch`` vector
    every graph keeps to its own nodes, and ``to_data_list`` of a ``Batch`` gives each its own
    edges. ``edge_weight`` carries the gradient to the features, so inside
    a model the transform is a layer; as the ``transform`` or ``pre_transform`` of a dataset it
    replaces :class:`torch_geometric.transforms.KNNGraph`.

    Args:
        learner: As :func:`bgl.to_batch_graph` takes it. Default: ``AdaptiveGraph()``.
        use_labels: Give the learner ``data.y``, a label for each node. It then prefers edges
            within a class, so leave it off wherever these labels are to be predicted.
        attr: What to learn from: "x", the features, or another matrix with a row for each node,
            such as "pos".

    Raises:
        ValueError: If the learner cannot be called or is a class, the data has no matrix ``attr``,
            or ``use_labels`` is on and ``y`` does not hold a label for each node.

    Example:
        >>> import torch
        >>> data = Data(x=torch.randn(6, 4), y=torch.arange(6) // 3)
        >>> LearnBatchGraph(AdaptiveGraph(k=2), use_labels=True)(data)
        Data(x=[6, 4], y=[6], edge_index=[2, 12], edge_weight=[12])
    """

    def __init__(
        self,
        learner: Callable[..., Graph] | None = None,
        use_labels: bool = False,
        attr: str = "x",
    ) -> None:
        self.learner = AdaptiveGraph() if learner is None else learner
        check_callable(self.learner, "learner")
        self.use_labels = use_labels
        self.attr = attr

    def forward(self, data: Data) -> Data:
        """Put the graph on the data."""
        features = data.get(self.attr) if isinstance(data, Data) else None
        if features is None:
            raise ValueError(
                f"Expected argument `data` to be a PyG Data with `{self.attr}` (`attr` names "
                f"another attribute to learn from), but got {describe(data)}"
            )
        if self.use_labels and data.y is None:
            raise ValueError("Expected argument `data` to have labels `y`, but got none")
        graph = to_batch_graph(
            features, data.y if self.use_labels else None, self.learner, batch=data.batch
        )
        for stale in ("edge_attr", "adj_t"):
            if stale in data:
                del data[stale]
        data.edge_index, data.edge_weight = graph.edge_index, graph.edge_weight
        if isinstance(data, Batch) and hasattr(data, "_slice_dict"):
            _keep_separable(data, self.attr)
        return data

    def __repr__(self) -> str:
        options = f"use_labels={self.use_labels}, attr={self.attr!r}"
        return f"{type(self).__name__}({self.learner!r}, {options})"


def _keep_separable(data: Batch, attr: str) -> None:
    """Note which edges are whose, so that the batch can be taken apart again."""
    first = data._slice_dict[attr].to(data.edge_index.device)
    graph = data.batch[data.edge_index[1]]
    order = graph.argsort(stable=True)
    data.edge_index, data.edge_weight = data.edge_index[:, order], data.edge_weight[order]
    counts = graph.bincount(minlength=data.num_graphs)
    slices = torch.cat([counts.new_zeros(1), counts.cumsum(0)]).cpu()
    own = ("edge_index", "edge_weight")
    kept = {key: value for key, value in data._slice_dict.items() if key in data}
    data._slice_dict = {**kept, **dict.fromkeys(own, slices)}
    shifts = {"edge_index": first[:-1].cpu(), "edge_weight": torch.zeros(data.num_graphs).long()}
    data._inc_dict = {**{key: data._inc_dict[key] for key in kept}, **shifts}
