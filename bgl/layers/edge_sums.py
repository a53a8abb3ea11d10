"""Sums along the edges of a graph, with derivatives of any order."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch_geometric.nn import MessagePassing

from bgl._checks import check_edge_index, describe, readable

# The three arguments a, x and w of the form below.
_TARGET, _SOURCE, _WEIGHT = range(3)


def neighbor_sums(x: Tensor, source: Tensor, weight: Tensor) -> Tensor:
    """Σ_p w_ip x_source(i, p) [R, C] for k neighbours a row, ``source`` and ``weight`` [R, k]."""
    return _contract(_TARGET, x.size(0), x, weight.flatten(), *_bags(source))


def neighbor_products(a: Tensor, x: Tensor, source: Tensor, known: Tensor | None = None) -> Tensor:
    """⟨a_i, x_source(i, p)⟩ [R, k]; ``known`` are the products where they need not be computed."""
    a = a.view_as(a)  # a compiled graph must not be given one tensor twice
    known = None if known is None else known.flatten()
    return _contract(_WEIGHT, x.size(0), a, x, *_bags(source), known).view(source.shape)


def edge_sums(x: Tensor, edge_index: Tensor, weight: Tensor) -> Tensor:
    """Σ_j a_ij x_j [N, C] along an edge list in any order."""
    source, target = edge_index.long().contiguous()
    if not readable(target) or bool((target.diff() < 0).any()):
        target, order = target.sort(stable=True)
        source, weight = source[order], weight[order]
    start = torch.searchsorted(target, torch.arange(x.size(0), device=x.device))
    return _contract(_TARGET, x.size(0), x, weight, source, target, start)


def _bags(source: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Edges, the target of each, and where a target's edges start."""
    rows, k = source.shape
    row = torch.arange(rows, device=source.device)
    return source.flatten().contiguous(), row.repeat_interleave(k), row * k


def _contract(
    missing: int,
    nodes: int,
    one: Tensor,
    other: Tensor,
    source: Tensor,
    target: Tensor,
    start: Tensor,
    known: Tensor | None = None,
) -> Tensor:
    """The derivative of the form below by the missing argument, from the other two."""
    if one.dtype != other.dtype:
        dtype = torch.promote_types(one.dtype, other.dtype)
        one, other = one.to(dtype), other.to(dtype)
    return _EdgeForm.apply(missing, nodes, one, other, source, target, start, known)


class _EdgeForm(torch.autograd.Function):
    """The trilinear form Σ_e w_e ⟨a_target(e), x_source(e)⟩, differentiated by the missing one.

    Its derivatives are the same form with another argument missing, so every derivative of every
    order is exact. The kernels are those of ``embedding_bag`` and its backward pass, which torch
    itself differentiates only once: no message is stored.
    """

    # no *args: torch.compile then hands gradients to the wrong arguments
    @staticmethod
    def forward(
        missing: int,
        nodes: int,
        one: Tensor,
        other: Tensor,
        source: Tensor,
        target: Tensor,
        start: Tensor,
        known: Tensor | None,
    ) -> Tensor:
        if known is not None:
            return known.clone()
        if missing == _TARGET:  # x and w are given
            return F.embedding_bag(source, one, start, mode="sum", per_sample_weights=other)
        if missing == _WEIGHT:  # a and x
            return torch.ops.aten._embedding_bag_per_sample_weights_backward(
                one, other, source, start, target, 0
            )
        return torch.ops.aten._embedding_bag_dense_backward(  # a and w
            one, source, target, start, source[:0], nodes, False, 0, other
        )

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.missing, ctx.nodes, *tensors, _ = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        one, other, *edges = ctx.saved_tensors
        form = [one, other]
        form.insert(ctx.missing, grad)
        grads: list[Tensor | None] = []
        for i in range(3):
            if i != ctx.missing:
                others = form[:i] + form[i + 1 :]
                needed = ctx.needs_input_grad[2 + len(grads)]
                grads.append(_contract(i, ctx.nodes, *others, *edges) if needed else None)
        return None, None, *grads, None, None, None, None


class EdgeConv(MessagePassing):
    """Base of the layers that sum along given edges: Σ_j a_ij x_j, in PyG's message passing.

    Edge lists take the short way of :func:`edge_sums`; sparse adjacencies, and PyG's explainers,
    which look at the messages, take PyG's.
    """

    def __init__(self) -> None:
        super().__init__(aggr="add", node_dim=0)

    def aggregate_edges(self, x: Tensor, edge_index: Tensor, edge_weight: Tensor | None) -> Tensor:
        """Sums of ``x`` [N, ...] for weights [E], or for heads [N, H, d] of weights [E, H]."""
        edge_list = is_edge_list(edge_index)
        if edge_list or not hasattr(edge_index, "size"):
            check_edge_index(edge_index, x.size(0))
        if edge_list and edge_weight is not None:
            check_edge_weight(edge_weight, edge_index.size(1), x)
        if not edge_list or self.explain is True:
            return self.propagate(edge_index, x=x, edge_weight=edge_weight)
        if edge_weight is None:
            edge_weight = x.new_ones(edge_index.size(1))
        if edge_weight.dim() == 1:
            return edge_sums(x.flatten(1), edge_index, edge_weight).view(x.shape)
        heads = zip(x.unbind(1), edge_weight.unbind(1), strict=True)
        return torch.stack([edge_sums(head, edge_index, weight) for head, weight in heads], dim=1)

    def message(self, x_j: Tensor, edge_weight: Tensor | None) -> Tensor:
        """One message a_ij x_j per edge."""
        if edge_weight is None:
            return x_j
        return edge_weight.view(*edge_weight.shape, *[1] * (x_j.dim() - edge_weight.dim())) * x_j


def is_edge_list(edge_index: Tensor) -> bool:
    """Is this a plain tensor of edges, not PyG's ``EdgeIndex`` or a sparse adjacency?"""
    return type(edge_index) is Tensor and edge_index.layout == torch.strided


def check_edge_weight(edge_weight: Tensor | None, edges: int, x: Tensor) -> None:
    """Raise unless there is a floating-point weight for each edge, or each edge and head."""
    shapes = [(edges,)] if x.dim() == 2 else [(edges,), (edges, x.size(1))]
    if (
        not isinstance(edge_weight, Tensor)
        or not edge_weight.is_floating_point()
        or edge_weight.shape not in shapes
    ):
        raise ValueError(
            "Expected argument `edge_weight` to be a floating-point tensor of shape "
            f"{' or '.join(str(list(shape)) for shape in shapes)}, one entry per edge, "
            f"but got {describe(edge_weight)}"
        )
