"""Message passing on a batch graph."""

from __future__ import annotations

import torch
from torch import Tensor
from torch_geometric.nn import MessagePassing

from bgl._checks import check_edge_index, check_matrix, check_real, describe

# Up to this many nodes a dense N × N product is faster than gathering E × C messages.
DENSE_NODES = 1024


class BatchGraphConv(MessagePassing):
    r"""Mixes every sample with its neighbours, without parameters.

    .. math::
        f_i = \epsilon \sum_{j} a_{ij} h_j + (1 - \epsilon) h_i

    Source: Wang et al., *Learning Dynamic Batch-Graph Representation for Deep Representation
    Learning*, IJCV 2024.

    Args:
        epsilon: Share ε of the neighbours, in [0, 1].

    Shapes:
        - ``x`` [N, C]; ``edge_index`` [2, E] (source j, target i) or a sparse adjacency
          (row = target) that PyG's message passing accepts; ``edge_weight`` [E] or None
          (all ones)
        - output [N, C]

    Raises:
        ValueError: If an argument has the wrong type, rank, shape or range.

    Example:
        >>> x = torch.tensor([[1.0], [3.0]])
        >>> edge_index = torch.tensor([[0, 1], [1, 0]])
        >>> BatchGraphConv(epsilon=0.5)(x, edge_index, torch.tensor([1.0, 1.0]))
        tensor([[2.],
                [2.]])
    """

    def __init__(self, epsilon: float = 0.5) -> None:
        super().__init__(aggr="add")
        self.epsilon = check_real(epsilon, "epsilon", 0.0, 1.0)

    def forward(self, x: Tensor, edge_index: Tensor, edge_weight: Tensor | None = None) -> Tensor:
        check_matrix(x)
        edge_list = type(edge_index) is Tensor and edge_index.layout == torch.strided
        if edge_list or not hasattr(edge_index, "size"):
            check_edge_index(edge_index, x.size(0))
        if edge_list and edge_weight is not None:
            fits = isinstance(edge_weight, Tensor) and edge_weight.is_floating_point()
            if not fits or edge_weight.shape != edge_index.shape[1:]:
                raise ValueError(
                    "Expected argument `edge_weight` to be a floating-point tensor with one entry "
                    f"per edge ({edge_index.size(1)}), but got {describe(edge_weight)}"
                )
        if edge_list and x.size(0) <= DENSE_NODES and self.explain is not True:
            mixed = _dense_propagate(x, edge_index, edge_weight)
        else:
            mixed = self.propagate(edge_index, x=x, edge_weight=edge_weight)
        return (self.epsilon * mixed + (1 - self.epsilon) * x).to(x.dtype)

    def message(self, x_j: Tensor, edge_weight: Tensor | None) -> Tensor:
        return x_j if edge_weight is None else edge_weight.view(-1, 1) * x_j

    def __repr__(self) -> str:
        return f"{type(self).__name__}(epsilon={self.epsilon})"


def _dense_propagate(x: Tensor, edge_index: Tensor, edge_weight: Tensor | None) -> Tensor:
    n = x.size(0)
    weight = x.new_ones(edge_index.size(1)) if edge_weight is None else edge_weight
    adjacency = weight.new_zeros(n * n).index_add(0, edge_index[1] * n + edge_index[0], weight)
    with torch.autocast(x.device.type, enabled=False):
        return adjacency.view(n, n) @ x.to(weight.dtype)
