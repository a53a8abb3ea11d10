"""Groups of samples: the graphs of a batch, the classes of a graph."""

from __future__ import annotations

import torch
from torch import Tensor


def group_numbers(*keys: Tensor) -> Tensor:
    """Number the groups of samples with equal keys below N, without waiting for the device.

    Groups are numbered in the order of their keys, the last key first.

    Example:
        >>> group_numbers(torch.tensor([7, 7, -2, 900]))
        tensor([1, 1, 0, 2])
    """
    order = keys[0].argsort(stable=True)
    for key in keys[1:]:
        order = order[key[order].argsort(stable=True)]
    new = torch.stack([key[order].diff() != 0 for key in keys]).any(0)
    number = torch.cat([new.new_zeros(1, dtype=torch.long), new.cumsum(0)])[: order.numel()]
    return torch.empty_like(order).scatter(0, order, number)
