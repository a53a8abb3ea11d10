"""The relaxed contrastive loss: pairs that are alike to a degree."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bgl._checks import check_matrix, check_real, describe
from bgl._precision import at_least_float32, exact_matmul


class RelaxedContrastiveLoss(nn.Module):
    r"""Pull pairs together and push them apart, each to the degree that they are alike.

    The loss of `"Self-Taught Metric Learning without Labels" <https://arxiv.org/abs/2205.01903>`_
    (Kim et al., CVPR 2022, Eq. 7), after *Embedding Transfer with Label Relaxation* (CVPR 2021).
    With :math:`d_{ij}` the distance of embeddings at unit length and relations :math:`w_{ij}`,

    .. math::
        \mathcal L = \frac 1N \sum_{i \ne j} \Big( w_{ij}\, d_{ij}^2
            + (1 - w_{ij}) \max(0, \delta - d_{ij})^2 \Big) .

    There :math:`d_{ij}` is divided by its mean over the batch, which a whitened embedding does not
    need: what is not alike lies at :math:`\sqrt 2` already. Nothing is differentiated by the
    relations.

    Args:
        margin: :math:`\delta` > 0, from which on pairs that are not alike add nothing.

    Shapes:
        - ``embeddings`` [N, D]; ``relations`` [N, N], in [0, 1]
        - output: scalar

    Raises:
        ValueError: If an argument has the wrong type, rank, shape or range.

    Example:
        >>> loss, x = RelaxedContrastiveLoss(), torch.eye(2)
        >>> loss(x, torch.ones(2, 2)), loss(x, torch.zeros(2, 2))
        (tensor(2.), tensor(0.))
    """

    def __init__(self, margin: float = 1.0) -> None:
        super().__init__()
        self.margin = check_real(margin, "margin", 0.0, exclusive=True)

    def forward(self, embeddings: Tensor, relations: Tensor) -> Tensor:
        """Compute the loss of ``embeddings`` [N, D] for ``relations`` [N, N]."""
        check_matrix(embeddings, "embeddings", "[N, D]")
        check_matrix(relations, "relations", "[N, N]")
        n = len(embeddings)
        if relations.shape != (n, n):
            raise ValueError(
                f"Expected argument `relations` to have a row and a column for each of {n} "
                f"embeddings, but got {describe(relations)}"
            )
        with torch.autocast(embeddings.device.type, enabled=False):
            unit = F.normalize(at_least_float32(embeddings), dim=1)
            w = relations.detach().to(unit)
            square = (2 - 2 * exact_matmul(unit, unit.t())).clamp(min=0)
            # the root has no slope at 0, where the same image meets itself
            d = square.clamp(min=torch.finfo(square.dtype).eps).sqrt()
            pairs = w * square + (1 - w) * F.relu(self.margin - d).square()
            return (pairs.sum() - pairs.diagonal().sum()) / n

    def extra_repr(self) -> str:
        return f"margin={self.margin}"
