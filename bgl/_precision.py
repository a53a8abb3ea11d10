"""The precision that sums, distances and graphs are computed in."""

from __future__ import annotations

import math
import os
from collections.abc import Callable

import torch
from torch import Tensor, nn

# Rows that a median is taken of; it need not be exact.
MEDIAN_ROWS = 256


def at_least_float32(x: Tensor) -> Tensor:
    """Return ``x`` itself, or in float32 where it has half precision.

    Example:
        >>> at_least_float32(torch.zeros(1, dtype=torch.bfloat16)).dtype
        torch.float32
    """
    return x.to(torch.promote_types(x.dtype, torch.float32))


def in_precision_of(loss: Callable[..., Tensor], embeddings: Tensor) -> Tensor:
    """Convert embeddings to the precision of a loss's parameters, or at least to float32.

    Losses with proxies would convert their parameters to the type of the embeddings, for good.
    """
    parameters = loss.parameters() if isinstance(loss, nn.Module) else ()
    dtype = next((p.dtype for p in parameters if p.is_floating_point()), None)
    return at_least_float32(embeddings) if dtype is None else embeddings.to(dtype)


def for_exact_products(x: Tensor) -> Tensor:
    """Return ``x``, in float64 where a switch of PyTorch allows products in less than float32.

    A compiled graph on the CPU keeps to the switch that it was compiled under.
    """
    reduced = x.dtype == torch.float32 and _may_reduce_float32(x.device.type)
    return x.double() if reduced else x


def exact_matmul(a: Tensor, b: Tensor, out: Tensor | None = None) -> Tensor:
    """Multiply two matrices, or batches of them, in their own precision, float32 or float64.

    Autocast is off. Where a switch allows float32 products in TF32 or bfloat16, they are computed
    in float64 instead, which no switch touches, and so are those of the gradient. As with
    ``torch.matmul``, nothing is differentiated through ``out``.

    Example:
        >>> exact_matmul(torch.ones(1, 2), torch.ones(2, 1))
        tensor([[2.]])
    """
    with torch.autocast(a.device.type, enabled=False):
        wide = for_exact_products(a)
        if wide is a:
            return torch.matmul(a, b, out=out)
        product = (wide @ for_exact_products(b)).to(a.dtype)
        return product if out is None else out.copy_(product)


def distance_factors(x: Tensor) -> tuple[Tensor, Tensor]:
    r"""Compute factors [N, C + 2], of equal norms, whose products are :math:`|x - y|^2`.

    Example:
        >>> left, right = distance_factors(torch.tensor([[0.0], [3.0]]))
        >>> (left @ right.T).round()
        tensor([[0., 9.],
                [9., 0.]])
    """
    square = x.square().sum(dim=1, keepdim=True)
    one, double = torch.ones_like(square), math.sqrt(2) * x
    return torch.cat([square, one, double], dim=1), torch.cat([one, square, -double], dim=1)


def central_point(points: Tensor) -> Tensor:
    """Take the median of every channel [C], from where squared distances lose the fewest digits.

    Unlike the mean it stays with the bulk of the points. And it is made of their own numbers:
    subtracting it does not round integers, codes and points that share an offset.

    Example:
        >>> central_point(torch.tensor([[1.0, 0.0], [2.0, 0.0], [90.0, 1.0]]))
        tensor([2., 0.])
    """
    some = points[:: max(1, math.ceil(len(points) / MEDIAN_ROWS))]
    # not median(): on a GPU it has no deterministic algorithm
    lower = at_least_float32(some).topk((len(some) + 1) // 2, dim=0, largest=False, sorted=False)
    return lower.values.amax(dim=0)


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _may_reduce_float32(device: str) -> bool:
    """Return whether products of float32 on this type of device may be computed in less."""
    if device == "mps":  # has no such switch, and no float64
        return False
    if device == "cuda" and os.environ.get("NVIDIA_TF32_OVERRIDE") == "1":
        return True  # obeyed by cuBLAS itself, so PyTorch does not know of it
    backend = torch.backends.cuda if device == "cuda" else torch.backends.mkldnn
    try:
        return backend.matmul.fp32_precision not in ("none", "ieee")
    except AttributeError:
        # Before PyTorch 2.9. Later versions refuse this question once the new switches were used.
        return torch.get_float32_matmul_precision() != "highest"
