"""Message passing on a batch graph."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch_geometric.nn import MessagePassing

from bgl._checks import check_edge_index, check_matrix, check_real, describe

# Up to this many nodes a dense N × N product is faster than gathering E × C messages.
DENSE_NODES = 1024
# Entries of the messages that are made at a time on larger graphs.
MESSAGE_ENTRIES = 2**20


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
        if edge_list and self.explain is not True:
            weight = x.new_ones(edge_index.size(1)) if edge_weight is None else edge_weight
            mixed = weighted_sums(x[:, None], edge_index, weight[:, None]).squeeze(1)
        else:
            mixed = self.propagate(edge_index, x=x, edge_weight=edge_weight)
        return (self.epsilon * mixed + (1 - self.epsilon) * x).to(x.dtype)

    def message(self, x_j: Tensor, edge_weight: Tensor | None) -> Tensor:
        return x_j if edge_weight is None else edge_weight.view(-1, 1) * x_j

    def __repr__(self) -> str:
        return f"{type(self).__name__}(epsilon={self.epsilon})"


def weighted_sums(x: Tensor, edge_index: Tensor, edge_weight: Tensor) -> Tensor:
    """Σ_j a_ij x_j head by head, in memory that does not grow with E × C.

    Small graphs are multiplied as dense matrices, larger ones summed some edges at a time.

    Args:
        x: values ``[N, H, d]``.
        edge_index: source j and target i ``[2, E]``.
        edge_weight: weights ``[E, H]``.
    """
    n, heads, _ = x.shape
    dtype = torch.promote_types(x.dtype, edge_weight.dtype)
    x, edge_weight = x.to(dtype), edge_weight.to(dtype)
    if n > DENSE_NODES:
        sums: Tensor = _EdgeSums.apply(x, edge_index, edge_weight)
        return sums
    adjacency = edge_weight.new_zeros(n * n, heads)
    adjacency = adjacency.index_add(0, edge_index[1] * n + edge_index[0], edge_weight)
    with torch.autocast(x.device.type, enabled=False):
        if heads == 1:
            return (adjacency.view(n, n) @ x[:, 0])[:, None]
        return torch.einsum("nmh,mhd->nhd", adjacency.view(n, n, heads), x)


class _EdgeSums(torch.autograd.Function):
    """:func:`weighted_sums` with messages made and forgotten piece by piece, both ways."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, edge_index: Tensor, edge_weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, edge_index, edge_weight)
        out = torch.zeros_like(x)
        for edges in _pieces(x, edge_index):
            source, target = edge_index[:, edges]
            out.index_add_(0, target, x[source].mul_(edge_weight[edges, :, None]))
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, Tensor]:
        x, edge_index, edge_weight = ctx.saved_tensors
        grad_x, grad_weight = torch.zeros_like(x), torch.empty_like(edge_weight)
        for edges in _pieces(x, edge_index):
            source, target = edge_index[:, edges]
            arriving = grad[target]
            grad_weight[edges] = torch.einsum("ehd,ehd->eh", arriving, x[source])
            grad_x.index_add_(0, source, arriving.mul_(edge_weight[edges, :, None]))
        return grad_x, None, grad_weight


def _pieces(x: Tensor, edge_index: Tensor) -> list[slice]:
    step = max(1, MESSAGE_ENTRIES // max(1, x[0].numel()))
    return [slice(i, i + step) for i in range(0, edge_index.size(1), step)]
