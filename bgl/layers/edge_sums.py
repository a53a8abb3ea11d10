"""Sums along the edges of a graph, with derivatives of any order."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch_geometric.nn import MessagePassing

from bgl._checks import check_edge_index, describe, readable

# The three arguments of the form below.
_TARGET, _SOURCE, _WEIGHT = range(3)


def neighbor_sums(x: Tensor, source: Tensor, weight: Tensor) -> Tensor:
    """Σ_p w_ip x_source(i, p) [R, C] for k neighbours a row, ``source`` and ``weight`` [R, k]."""
    return _contract(_TARGET, None, x, weight.flatten(), *_bags(source))


def neighbor_products(a: Tensor, x: Tensor, source: Tensor, values: Tensor | None = None) -> Tensor:
    """⟨a_i, x_source(i, p)⟩ [R, k]; ``values`` are the products where they are known."""
    known = None if values is None else values.flatten()
    a = a.view_as(a)  # a compiled graph must not be given one tensor twice
    return _contract(_WEIGHT, a, x, None, *_bags(source), known).view(source.shape)


def edge_sums(x: Tensor, edge_index: Tensor, weight: Tensor) -> Tensor:
    """Σ_j a_ij x_j [N, C] along an edge list in any order."""
    source, target = edge_index.long().contiguous()
    if not readable(target) or bool((target.diff() < 0).any()):
        target, order = target.sort(stable=True)
        source, weight = source[order], weight[order]
    start = torch.searchsorted(target, torch.arange(x.size(0), device=x.device))
    return _contract(_TARGET, None, x, weight, source, target, start)


def _bags(source: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Edges, the target of each, and where a target's edges start."""
    rows, k = source.shape
    row = torch.arange(rows, device=source.device)
    return source.flatten().contiguous(), row.repeat_interleave(k), row * k


def _contract(
    missing: int,
    a: Tensor | None,
    x: Tensor | None,
    w: Tensor | None,
    source: Tensor,
    target: Tensor,
    start: Tensor,
    known: Tensor | None = None,
) -> Tensor:
    one, other = (t.dtype for t in (a, x, w) if t is not None)
    if one != other:
        dtype = torch.promote_types(one, other)
        a, x, w = (t if t is None else t.to(dtype) for t in (a, x, w))
    form = _EdgeForm if torch.compiler.is_compiling() else _EagerEdgeForm
    return form.apply(missing, 0, a, x, w, source, target, start, known)


class _EdgeForm(torch.autograd.Function):
    """The trilinear form Σ_e w_e ⟨a_target(e), x_source(e)⟩, differentiated by the missing one.

    Its derivatives are the same form with another argument missing, so every derivative of every
    order is exact. The kernels are those of ``embedding_bag`` and its backward pass, which torch
    itself differentiates only once: no message is stored.
    """

    @staticmethod
    def forward(
        missing: int,
        nodes: int,
        a: Tensor | None,
        x: Tensor | None,
        w: Tensor | None,
        source: Tensor,
        target: Tensor,
        start: Tensor,
        known: Tensor | None,
    ) -> Tensor:
        if known is not None:
            return known.clone()
        return _derivative(missing, nodes, a, x, w, source, target, start)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.missing, _, *form, source, target, start, _ = inputs
        ctx.save_for_backward(*form, source, target, start)
        ctx.save_for_forward(*form, source, target, start)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        *form, source, target, start = ctx.saved_tensors
        form[ctx.missing] = grad
        grads: list[Tensor | None] = [None, None, None]
        for i in range(3):
            if i != ctx.missing and ctx.needs_input_grad[2 + i]:
                nodes = form[_SOURCE].size(0)
                others = [None if j == i else t for j, t in enumerate(form)]
                if torch.is_grad_enabled():
                    grads[i] = _EagerEdgeForm.apply(i, nodes, *others, source, target, start, None)
                else:
                    grads[i] = _derivative(i, nodes, *others, source, target, start)
        return None, None, *grads, None, None, None, None


class _EagerEdgeForm(_EdgeForm):
    """With forward-mode derivatives, which a compiled graph cannot hold."""

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> Tensor:
        *form, source, target, start = ctx.saved_tensors
        parts = []
        for i, tangent in enumerate(tangents[2:5]):
            if tangent is not None:
                moved = [tangent if j == i else t for j, t in enumerate(form)]
                nodes = 0 if form[_SOURCE] is None else form[_SOURCE].size(0)
                parts.append(
                    _EagerEdgeForm.apply(ctx.missing, nodes, *moved, source, target, start, None)
                )
        return torch.stack(parts).sum(0)


def _derivative(
    missing: int,
    nodes: int,
    a: Tensor | None,
    x: Tensor | None,
    w: Tensor | None,
    source: Tensor,
    target: Tensor,
    start: Tensor,
) -> Tensor:
    if missing == _TARGET:
        return F.embedding_bag(source, x, start, mode="sum", per_sample_weights=w)
    if missing == _WEIGHT:
        return torch.ops.aten._embedding_bag_per_sample_weights_backward(
            a, x, source, start, target, 0
        )
    return torch.ops.aten._embedding_bag_dense_backward(
        a, source, target, start, source.new_empty(0), nodes, False, 0, w
    )


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
