"""The precision that sums, distances and graphs are computed in."""

from __future__ import annotations

import torch
from torch import Tensor


def at_least_float32(x: Tensor) -> Tensor:
    """``x`` itself, or in float32 where it has half precision.

    Example:
        >>> at_least_float32(torch.zeros(1, dtype=torch.bfloat16)).dtype
        torch.float32
    """
    return x.to(torch.promote_types(x.dtype, torch.float32))


def exact_matmul(a: Tensor, b: Tensor) -> Tensor:
    """Multiply two matrices, or batches of them, in their own precision, float32 or float64.

    Example:
        >>> exact_matmul(torch.ones(1, 2), torch.ones(2, 1))
        tensor([[2.]])
    """
    with torch.autocast(a.device.type, enabled=False):
        return a @ b
