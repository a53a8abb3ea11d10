"""Sums along the edges of a graph, with first and second derivatives."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bgl._checks import readable
from bgl._precision import exact_matmul
from bgl._sizes import spreads

# The three arguments a, x and w of the form below.
_TARGET, _SOURCE, _WEIGHT = range(3)


def neighbor_sums(x: Tensor, source: Tensor, weight: Tensor) -> Tensor:
    """Σ_p w_ip x_source(i, p) [R, C] for k neighbours a row, ``source`` and ``weight`` [R, k]."""
    if source.size(1) == 0:  # which embedding_bag does not take
        return x.new_zeros(len(source), x.size(1))
    return _sums(x, weight, source.contiguous())


def neighbor_products(a: Tensor, x: Tensor, source: Tensor, known: Tensor | None = None) -> Tensor:
    """⟨a_i, x_source(i, p)⟩ [R, k]; ``known`` are the products where they need not be computed."""
    a = a.view_as(a)  # a compiled graph must not be given one tensor twice
    return _EdgeForm.apply(_WEIGHT, x.size(0), a, x, source.contiguous(), None, None, known)


def edge_sums(x: Tensor, edge_index: Tensor, weight: Tensor) -> Tensor:
    """Σ_j a_ij x_j [N, C] along an edge list in any order."""
    source, target = edge_index.long().contiguous()
    if not readable(target) or bool((target.diff() < 0).any()):
        target, order = target.sort(stable=True)
        source, weight = source[order], weight[order]
    start = torch.searchsorted(target, torch.arange(x.size(0), device=x.device))
    return _sums(x, weight, source, target, start)


def _sums(
    x: Tensor,
    weight: Tensor,
    source: Tensor,
    target: Tensor | None = None,
    start: Tensor | None = None,
) -> Tensor:
    dtype = torch.promote_types(x.dtype, weight.dtype)
    x, weight = x.to(dtype), weight.to(dtype)
    return _EdgeForm.apply(_TARGET, x.size(0), x, weight, source, target, start, None)


class _EdgeForm(torch.autograd.Function):
    """The trilinear form Σ_e w_e ⟨a_target(e), x_source(e)⟩, differentiated by one of a, x and w.

    Given are the other two, in this order. Edges are a list with the ``target`` of each and the
    ``start`` of each target's, or k of each target: then ``source`` and w are [R, k], and targets
    are made when they are needed. Kept for the derivatives, they take more than the weights.
    The derivatives are the same form, differentiated by
    another argument, so every derivative of every order is exact. The kernels are those of
    ``embedding_bag`` and its backward pass, which torch itself differentiates only once: no
    message is stored.
    """

    # no *args: torch.compile then hands gradients to the wrong arguments
    @staticmethod
    def forward(
        missing: int,
        nodes: int,
        one: Tensor,
        other: Tensor,
        source: Tensor,
        target: Tensor | None,
        start: Tensor | None,
        known: Tensor | None,
    ) -> Tensor:
        if known is not None:
            return known.view_as(known)
        if missing == _TARGET:  # x and w are given
            return F.embedding_bag(source, one, start, mode="sum", per_sample_weights=other)
        if target is None and spreads(one.device, len(source) * nodes):
            if missing == _WEIGHT:  # a and x
                return exact_matmul(one, other.t()).gather(1, source.long())
            spread = other.new_zeros(len(source), nodes).scatter_add_(1, source.long(), other)
            return exact_matmul(spread.t(), one)
        if target is None:
            edges = torch.arange(source.numel(), dtype=source.dtype, device=source.device)
            target = edges // max(1, source.size(1))
        flat = source.flatten()
        if missing == _WEIGHT:
            products = torch.ops.aten._embedding_bag_per_sample_weights_backward(
                one, other, flat, flat[:0], target, 0
            )
            return products.view_as(source)
        return torch.ops.aten._embedding_bag_dense_backward(  # a and w
            one, flat, target, flat[:0], flat[:0], nodes, False, 0, other.flatten()
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
        for i in (i for i in range(3) if i != ctx.missing):
            others, needed = form[:i] + form[i + 1 :], ctx.needs_input_grad[2 + len(grads)]
            grads.append(_EdgeForm.apply(i, ctx.nodes, *others, *edges, None) if needed else None)
        return None, None, *grads, None, None, None, None
