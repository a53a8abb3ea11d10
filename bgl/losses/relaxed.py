"""Losses of soft relations: pairs that are alike to a degree."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bgl._checks import check_real
from bgl.losses.batch import check_pairs, cosines


class RelaxedContrastiveLoss(nn.Module):
    r"""Pull pairs together and push them apart, each to the degree that they are alike.

    The loss of `"Self-Taught Metric Learning without Labels" <https://arxiv.org/abs/2205.01903>`_
    (Kim et al., CVPR 2022), as in the authors' code. With :math:`d_{ij}` the distance of
    embeddings at unit length, and relations :math:`w_{ij}`,

    .. math::
        \tilde d_{ij} = \frac{d_{ij}}{\frac 1N \sum_k d_{ik}}, \qquad
        \mathcal L = \frac 1N \sum_{i \ne j} \Big( w_{ij}\, \tilde d_{ij}^2
            + (1 - w_{ij}) \max(0, \delta - \tilde d_{ij})^2 \Big) .

    Nothing is differentiated by the relations.

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
        (tensor(4.), tensor(0.))
    """

    def __init__(self, margin: float = 1.0) -> None:
        super().__init__()
        self.margin = check_real(margin, "margin", 0.0, exclusive=True)

    def forward(self, embeddings: Tensor, relations: Tensor) -> Tensor:
        """Compute the loss of ``embeddings`` [N, D] for ``relations`` [N, N]."""
        cosine, w = _pairs(embeddings, relations)
        # the root has no slope at 0, where the same image meets itself
        tiny = torch.finfo(cosine.dtype).eps
        d = (2 - 2 * cosine).clamp(min=tiny).sqrt().masked_fill(_itself(cosine), 0)
        d = d / d.mean(1, keepdim=True)
        pairs = w * d.square() + (1 - w) * F.relu(self.margin - d).square()
        return pairs.masked_fill(_itself(cosine), 0).sum() / len(pairs)

    def extra_repr(self) -> str:
        return f"margin={self.margin}"


class RelatedNeighborsLoss(nn.Module):
    r"""Learn relations as a distribution over the other samples of the batch.

    With :math:`s_{ij}` the cosines of the embeddings and relations :math:`w_{ij}`,

    .. math::
        \mathcal L = \frac 1N \sum_i \operatorname{KL}(q_i \,\|\, p_i), \qquad
        q_{ij} = \frac{w_{ij}}{\sum_{k \ne i} w_{ik}}, \qquad
        p_{ij} = \frac{\exp(s_{ij} / \tau)}{\sum_{k \ne i} \exp(s_{ik} / \tau)} \qquad (j \ne i).

    Samples without relations add nothing. With relations 1 within classes and 0 between them it is
    `supervised contrastive learning <https://arxiv.org/abs/2004.11362>`_, but for a constant.
    Nothing is differentiated by the relations.

    Args:
        temperature: :math:`\tau` > 0.

    Shapes:
        - ``embeddings`` [N, D]; ``relations`` [N, N], in [0, 1]
        - output: scalar

    Raises:
        ValueError: If an argument has the wrong type, rank, shape or range.

    Example:
        >>> loss, x = RelatedNeighborsLoss(temperature=1.0), torch.eye(3)
        >>> loss(x, torch.ones(3, 3)), loss(x, torch.eye(3))
        (tensor(0.), tensor(0.))
    """

    def __init__(self, temperature: float = 0.1) -> None:
        super().__init__()
        self.temperature = check_real(temperature, "temperature", 0.0, exclusive=True)

    def forward(self, embeddings: Tensor, relations: Tensor) -> Tensor:
        """Compute the loss of ``embeddings`` [N, D] for ``relations`` [N, N]."""
        cosine, w = _pairs(embeddings, relations)
        itself = _itself(cosine)
        w = w.masked_fill(itself, 0)
        q = w / w.sum(1, keepdim=True).clamp(min=torch.finfo(w.dtype).tiny)
        # not -inf, whose product with a relation of 0 is NaN
        lowest = -torch.finfo(cosine.dtype).max
        log_p = (cosine / self.temperature).masked_fill(itself, lowest).log_softmax(1)
        return F.kl_div(log_p.masked_fill(itself, 0), q, reduction="sum") / len(q)

    def extra_repr(self) -> str:
        return f"temperature={self.temperature}"


def _pairs(embeddings: Tensor, relations: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines and relations of all pairs, checked, in the same precision."""
    cosine = cosines(embeddings)
    check_pairs(relations, "relations", len(cosine))
    return cosine, relations.detach().to(cosine)


def _itself(pairs: Tensor) -> Tensor:
    return torch.eye(len(pairs), dtype=torch.bool, device=pairs.device)
