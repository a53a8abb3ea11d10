"""Message passing on a batch graph."""

from __future__ import annotations

from torch import Tensor

from bgl._checks import check_matrix, check_real
from bgl.layers.edge_sums import EdgeConv
from bgl.layers.pairs import Neighbors


class BatchGraphConv(EdgeConv):
    r"""Mix every sample with its neighbours, without parameters.

    The message passing of `"Learning Dynamic Batch-Graph Representation for Deep
    Representation Learning" <https://doi.org/10.1007/s11263-024-02175-8>`_ (IJCV 2024).

    .. math::
        f_i = \epsilon \sum_{j} a_{ij} h_j + (1 - \epsilon) h_i

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
        >>> import torch
        >>> x = torch.tensor([[1.0], [3.0]])
        >>> edge_index = torch.tensor([[0, 1], [1, 0]])
        >>> BatchGraphConv(epsilon=0.5)(x, edge_index, torch.tensor([1.0, 1.0]))
        tensor([[2.],
                [2.]])
    """

    def __init__(self, epsilon: float = 0.5) -> None:
        super().__init__()
        self.epsilon = check_real(epsilon, "epsilon", 0.0, 1.0)

    def forward(self, x: Tensor, edge_index: Tensor, edge_weight: Tensor | None = None) -> Tensor:
        """Mix along any graph."""
        check_matrix(x)
        return self._mix(x, self.aggregate_edges(x, edge_index, edge_weight))

    def along(self, x: Tensor, neighbors: Neighbors) -> Tensor:
        """Mix along a learned graph with k neighbours per sample."""
        if self.explain is True:  # PyG's explainers look at the messages
            return self(x, *neighbors.edges(padded=True))
        return self._mix(x, neighbors.sums(x))

    def _mix(self, x: Tensor, sums: Tensor) -> Tensor:
        return (self.epsilon * sums + (1 - self.epsilon) * x).to(x.dtype)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(epsilon={self.epsilon})"
