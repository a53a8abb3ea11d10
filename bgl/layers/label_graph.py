"""The graph of equal labels."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bgl._checks import check_index_vector, check_index_vectors
from bgl.layers.pairs import Graph


class LabelGraph(nn.Module):
    r"""Connect the samples of a class, self-loops counted twice.

    The label correlation of `"Learning Dynamic Batch-Graph Representation for Deep
    Representation Learning" <https://doi.org/10.1007/s11263-024-02175-8>`_ (IJCV 2024). With
    :math:`S_{ij} = 1` for equal labels (else 0),

    .. math::
        L = D^{-1} (S + I), \qquad D = \text{diag}((S + I) 1).

    Within a class of n samples this is 2/(n + 1) on the diagonal and 1/(n + 1) besides it; the
    symmetric normalisation :math:`D^{-1/2} (S + I) D^{-1/2}` of `BGFormer
    <https://arxiv.org/abs/2211.10622>`_ is the same.

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

    def forward(self, y: Tensor, *, batch: Tensor | None = None) -> Graph:
        """Connect equal labels."""
        check_index_vector(y, y.numel() if isinstance(y, Tensor) else 0, "y")
        check_index_vectors(y.numel(), batch=batch)
        same = y[:, None] == y[None, :]
        if batch is not None:
            same = same & (batch[:, None] == batch[None, :])
        degree = same.sum(1) + 1
        target, source = same.nonzero(as_tuple=True)
        weight = 1.0 + (source == target).float()
        weight = weight / degree[target]
        return torch.stack([source, target]), weight
