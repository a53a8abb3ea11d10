"""The graph of equal labels."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bgl._checks import check_choice, check_index_vector
from bgl.layers.pairs import Graph


class LabelGraph(nn.Module):
    r"""Connects the samples of a class, self-loops counted twice.

    With :math:`S_{ij} = 1` for equal labels (else 0) and :math:`\bar A = S + I`,

    .. math::
        L = D^{-1} \bar A \ (\text{row}) \qquad\text{or}\qquad
        L = D^{-1/2} \bar A D^{-1/2} \ (\text{symmetric}), \qquad D = \text{diag}(\bar A 1).

    Within a class of n samples all degrees are n + 1, so both give 2/(n + 1) on the diagonal and
    1/(n + 1) beside it.

    Source: Wang et al., IJCV 2024 (row); Wang et al., arXiv 2211.10622 (symmetric).

    Args:
        normalization: ``"row"`` or ``"symmetric"``.

    Shapes:
        - ``y`` [N] integer labels; ``batch`` [N] or None (classes are apart in each graph)
        - output: ``edge_index`` [2, E] and ``edge_weight`` [E] (float32), E = Σ n² over classes

    Raises:
        ValueError: If an argument has the wrong type, rank, shape or value.

    Example:
        >>> LabelGraph()(torch.tensor([5, 5, 9]))[1]
        tensor([0.6667, 0.3333, 0.3333, 0.6667, 1.0000])
    """

    learns_from = ("y", "batch")

    def __init__(self, normalization: str = "row") -> None:
        super().__init__()
        self.normalization = check_choice(normalization, "normalization", ("row", "symmetric"))

    def forward(self, y: Tensor, *, batch: Tensor | None = None) -> Graph:
        check_index_vector(y, y.numel() if isinstance(y, Tensor) else 0, "y")
        same = y[:, None] == y[None, :]
        if batch is not None:
            check_index_vector(batch, y.numel(), "batch")
            same = same & (batch[:, None] == batch[None, :])
        degree = same.sum(1) + 1
        target, source = same.nonzero(as_tuple=True)
        weight = 1.0 + (source == target).float()
        if self.normalization == "row":
            weight = weight / degree[target]
        else:
            weight = weight * (degree[target] * degree[source]).float().rsqrt()
        return torch.stack([source, target]), weight

    def extra_repr(self) -> str:
        return f"normalization={self.normalization!r}"
