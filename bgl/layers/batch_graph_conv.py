"""Message passing on a batch graph."""

from __future__ import annotations

import torch
from torch import Tensor
from torch_geometric.nn import MessagePassing

from bgl._checks import check_edge_index, check_floating, check_real, describe
from bgl.layers.edge_sums import edge_sums
from bgl.layers.pairs import Neighbors


class BatchGraphConv(MessagePassing):  # type: ignore[misc]
    r"""Mix every sample with its neighbours, without parameters.

    The message passing of `"Learning Dynamic Batch-Graph Representation for Deep
    Representation Learning" <https://doi.org/10.1007/s11263-024-02175-8>`_ (IJCV 2024).

    .. math::
        f_i = \epsilon \sum_{j} a_{ij} h_j + (1 - \epsilon) h_i

    With heads, each has features and weights of its own. ``BatchGraphConv(epsilon=1.0)`` on the
    values of a head and the weights of :class:`AttentionGraph` is the structure-constrained
    self-attention of `BGFormer <https://arxiv.org/abs/2211.10622>`_; :class:`BGFormerBlock`
    computes the same with the graph kept as a mask, so that torch's fused attention does the work.

    Args:
        epsilon: Share ε of the neighbours, in [0, 1].

    Shapes:
        - ``x`` [N, C], or [N, H, d] with heads; ``edge_index`` [2, E] (source j, target i) or a
          sparse adjacency (row = target) that PyG's message passing accepts; ``edge_weight`` [E],
          [E, H] for weights of each head, or None (those of the adjacency, or all ones)
        - output: as ``x``

    Raises:
        ValueError: If an argument has the wrong type, rank, shape or range.

    Example:
        >>> import torch
        >>> x = torch.tensor([[1.0], [3.0]])
        >>> edge_index = torch.tensor([[0, 1], [1, 0]])
        >>> BatchGraphConv(epsilon=0.5)(x, edge_index, torch.tensor([1.0, 1.0]))
        tensor([[2.],
                [2.]])
    """

    def __init__(self, epsilon: float = 0.5) -> None:
        super().__init__(aggr="add", node_dim=0)
        self.epsilon = check_real(epsilon, "epsilon", 0.0, 1.0)

    def forward(self, x: Tensor, edge_index: Tensor, edge_weight: Tensor | None = None) -> Tensor:
        """Mix along any graph.

        Edge lists take a short way; sparse adjacencies, and PyG's explainers, which look at the
        messages, take PyG's.
        """
        check_floating(x, "x", "[N, C] or [N, H, d]", (2, 3))
        edge_list = type(edge_index) is Tensor and edge_index.layout == torch.strided
        if edge_list or not hasattr(edge_index, "size"):
            check_edge_index(edge_index, x.size(0))
        if not edge_list:
            return self._mix(x, self.propagate(edge_index, x=x, edge_weight=edge_weight))
        if edge_weight is None:
            edge_weight = x.new_ones(edge_index.size(1))
        _check_weight(edge_weight, edge_index.size(1), x)
        if self.explain is True:
            sums = self.propagate(edge_index, x=x, edge_weight=edge_weight)
        elif edge_weight.dim() == 1:
            sums = edge_sums(x.flatten(1), edge_index, edge_weight).view(x.shape)
        else:
            heads = zip(x.unbind(1), edge_weight.unbind(1), strict=True)
            sums = torch.stack([edge_sums(h, edge_index, weight) for h, weight in heads], dim=1)
        return self._mix(x, sums)

    def along(self, x: Tensor, neighbors: Neighbors) -> Tensor:
        """Mix along a learned graph with k neighbours per sample."""
        if self.explain is True:  # PyG's explainers look at the messages
            return self(x, *neighbors.edges(padded=True))
        return self._mix(x, neighbors.sums(x))

    def _mix(self, x: Tensor, sums: Tensor) -> Tensor:
        return torch.lerp(x.to(sums.dtype), sums, self.epsilon).to(x.dtype)

    def message(self, x_j: Tensor, edge_weight: Tensor | None) -> Tensor:
        """One message a_ij x_j per edge."""
        if edge_weight is None:
            return x_j
        return edge_weight.view(*edge_weight.shape, *[1] * (x_j.dim() - edge_weight.dim())) * x_j

    def __repr__(self) -> str:
        return f"{type(self).__name__}(epsilon={self.epsilon})"


def _check_weight(edge_weight: Tensor, edges: int, x: Tensor) -> None:
    """Raise unless there is a floating-point weight for each edge, or each edge and head."""
    shapes = [[edges]] if x.dim() == 2 else [[edges], [edges, x.size(1)]]
    if (
        not isinstance(edge_weight, Tensor)
        or not edge_weight.is_floating_point()
        or list(edge_weight.shape) not in shapes
    ):
        raise ValueError(
            "Expected argument `edge_weight` to be a floating-point tensor of shape "
            f"{' or '.join(map(str, shapes))}, one entry per edge, but got {describe(edge_weight)}"
        )
