"""Message passing of attention values along a given graph."""

from __future__ import annotations

from torch import Tensor

from bgl._checks import describe
from bgl.layers.edge_sums import EdgeConv, check_edge_weight, is_edge_list


class StructureConstrainedAttention(EdgeConv):
    r"""Gather the values of each sample's neighbours, head by head.

    The structure-constrained self-attention of `"Rethinking Batch Sample Relationships for Data
    Representation: A Batch-Graph Transformer based Approach" <https://arxiv.org/abs/2211.10622>`_.

    .. math::
        o_i^h = \sum_{j} a_{ij}^h v_j^h

    The weights come from the graph (:class:`AttentionGraph`, :class:`LabelGraph`, or any other),
    so the attention cannot leave its structure. No parameters. :class:`BGFormerBlock` computes the
    same sums with the graph kept as a mask, so that torch's fused attention does the work.

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

    def forward(
        self, value: Tensor, edge_index: Tensor, edge_weight: Tensor | None = None
    ) -> Tensor:
        """Gather along any graph."""
        if not isinstance(value, Tensor) or value.dim() != 3 or not value.is_floating_point():
            raise ValueError(
                "Expected argument `value` to be a floating-point tensor of shape [N, H, d], "
                f"but got {describe(value)}"
            )
        if edge_weight is None and is_edge_list(edge_index):
            check_edge_weight(edge_weight, edge_index.size(-1), value)
        return self.aggregate_edges(value, edge_index, edge_weight).to(value.dtype)
