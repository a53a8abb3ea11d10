"""Message passing of attention values along a given graph."""

from __future__ import annotations

from torch import Tensor
from torch_geometric.nn import MessagePassing
from torch_geometric.utils import is_torch_sparse_tensor

from bgl._checks import check_edge_index, describe
from bgl.layers.batch_graph_conv import weighted_sums


class StructureConstrainedAttention(MessagePassing):
    r"""Gathers the values of each sample's neighbours, head by head.

    .. math::
        o_i^h = \sum_{j} a_{ij}^h v_j^h

    The weights come from the graph (:class:`AttentionGraph`, :class:`LabelGraph`, or any other),
    so the attention cannot leave its structure. No parameters.

    Source: Wang et al., *Rethinking Batch Sample Relationships for Data Representation: A Batch-
    Graph Transformer based Approach*, arXiv 2211.10622 (structure-constrained self-attention).

    Shapes:
        - ``value`` [N, H, d]; ``edge_index`` [2, E] (source j, target i) or a sparse adjacency
          (row = target) that PyG's message passing accepts; ``edge_weight`` [E, H], or [E] for
          the same weights in all heads; None: the values of the adjacency
        - output [N, H, d]

    Raises:
        ValueError: If an argument has the wrong rank or shape.

    Example:
        >>> import torch
        >>> value = torch.tensor([[[1.0]], [[3.0]]])
        >>> edges = torch.tensor([[0, 1, 1], [0, 0, 1]])
        >>> attend = StructureConstrainedAttention()
        >>> attend(value, edges, torch.tensor([0.5, 0.5, 1.0])).flatten()
        tensor([2., 3.])
    """

    def __init__(self) -> None:
        super().__init__(aggr="add", node_dim=0)

    def forward(
        self, value: Tensor, edge_index: Tensor, edge_weight: Tensor | None = None
    ) -> Tensor:
        if not isinstance(value, Tensor) or value.dim() != 3 or not value.is_floating_point():
            raise ValueError(
                "Expected argument `value` to be a floating-point tensor of shape [N, H, d], "
                f"but got {describe(value)}"
            )
        n, heads, _ = value.shape
        sparse = isinstance(edge_index, Tensor) and is_torch_sparse_tensor(edge_index)
        if sparse or (not isinstance(edge_index, Tensor) and hasattr(edge_index, "sparse_sizes")):
            mixed: Tensor = self.propagate(edge_index, value=value, edge_weight=edge_weight)
            return mixed
        check_edge_index(edge_index, n)
        edges = edge_index.size(1)
        if (
            not isinstance(edge_weight, Tensor)
            or not edge_weight.is_floating_point()
            or edge_weight.shape not in ((edges,), (edges, heads))
        ):
            raise ValueError(
                f"Expected argument `edge_weight` to be a floating-point tensor of shape [{edges}] "
                f"or [{edges}, {heads}], but got {describe(edge_weight)}"
            )
        if self.explain is True:
            out: Tensor = self.propagate(edge_index, value=value, edge_weight=edge_weight)
        else:
            if edge_weight.dim() == 1:
                edge_weight = edge_weight[:, None].expand(edges, heads)
            out = weighted_sums(value, edge_index, edge_weight)
        return out.to(value.dtype)

    def message(self, value_j: Tensor, edge_weight: Tensor) -> Tensor:
        return edge_weight.view(edge_weight.size(0), -1, 1) * value_j
