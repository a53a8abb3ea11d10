"""Contextual similarity: the overlap of neighbourhoods as a soft relation."""

from __future__ import annotations

import torch
from pytorch_metric_learning.distances import CosineSimilarity
from pytorch_metric_learning.losses import ContrastiveLoss
from torch import Tensor, nn

from bgl._checks import check_int, check_real
from bgl._precision import at_least_float32, for_exact_products
from bgl.losses.batch import WholeBatchLoss

SLOPE = 10.0  # of the heuristic gradient of "is a neighbour", in the authors' code


class ContextualSimilarityLoss(WholeBatchLoss):
    r"""Learn which samples share neighbours, besides which are similar.

    The loss of `"Supervised Metric Learning to Rank for Retrieval via Contextual Similarity
    Optimization" <https://arxiv.org/abs/2210.01908>`_ (Liao et al., ICML 2023), as in the
    authors' code. With similarities :math:`S`, the :math:`k` nearest samples of :math:`i` (itself
    among them) and all that are as near by a margin are its neighbours,

    .. math::
        m^k_{ij} = [\,2 s_{ij} + \epsilon \ge 2 s_{i(k)}\,], \qquad
        r_{ij} = m^{k/2}_{ij} m^{k/2}_{ji}, \qquad \bar m = 1 - m^k,

    and the contextual similarity is the overlap of neighbourhoods, averaged over mutual
    neighbours,

    .. math::
        w_{ij} = \frac{m^k_{ij}}2 \Big(
            \frac{\sum_p m^k_{ip} m^k_{jp}}{\sum_p m^k_{ip}} +
            \frac{\sum_p \bar m_{ip} \bar m_{jp}}{\sum_p \bar m_{ip}} \Big), \qquad
        c = \frac{v + v^\top}2, \quad v_{ij} = \frac{\sum_p r_{ip} w_{pj}}{\sum_p r_{ip}} .

    With :math:`t_{ij} = 1` for equal labels, else 0, the loss is

    .. math::
        \frac{\lambda}{N^2} \sum_{i \ne j} (t_{ij} - c_{ij})^2
        + \gamma \Big(\frac{1}{N^2} \sum_{ij} s_{ij} - \bar s\Big)^2
        + (1 - \lambda - \gamma)\, \mathcal L_{\text{contrastive}} .

    The step :math:`[\cdot]` is differentiated as if it had a slope of 10; thresholds and the sizes
    of neighbourhoods are constants.

    Args:
        distance: A similarity of pytorch-metric-learning; by default ``CosineSimilarity()``.
        k: Number of neighbours, at least 2; about the samples of each class.
        eps: Margin ε of the neighbours.
        lam: Share λ of the contextual similarity.
        gamma: Share γ of the regularisation.
        mean_similarity: What the similarities are to have as their mean, :math:`\bar s`.
        pos_margin: Similarity from which a positive pair adds nothing to the contrastive loss.
        neg_margin: Similarity up to which a negative pair adds nothing to it.

    Shapes:
        - input: embeddings ``[N, C]``, labels ``[N]``
        - output: scalar

    Raises:
        ValueError: If an argument has the wrong type, shape or range, or ``indices_tuple``,
            ``ref_emb`` or ``ref_labels`` is given: the loss compares the whole batch.

    Example:
        >>> embeddings = torch.tensor([[1.0, 0.0], [0.6, 0.8], [-0.6, 0.8], [-1.0, 0.0]])
        >>> ContextualSimilarityLoss(k=2)(embeddings, torch.tensor([0, 0, 1, 1]))
        tensor(0.0758)
    """

    REASON = "ContextualSimilarityLoss compares all samples of the batch"

    def __init__(
        self,
        distance: nn.Module | None = None,
        k: int = 4,
        eps: float = 0.05,
        lam: float = 0.4,
        gamma: float = 0.1,
        mean_similarity: float = 0.25,
        pos_margin: float = 0.75,
        neg_margin: float = 0.6,
    ) -> None:
        super().__init__()
        self.distance = CosineSimilarity() if distance is None else distance
        self.k = check_int(k, "k", 2)
        self.eps = check_real(eps, "eps", 0.0)
        self.lam = check_real(lam, "lam", 0.0, 1.0)
        self.gamma = check_real(gamma, "gamma", 0.0, 1.0 - self.lam)
        self.mean_similarity = check_real(mean_similarity, "mean_similarity")
        self.contrastive = ContrastiveLoss(pos_margin, neg_margin, distance=self.distance)

    def compute(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        labels = labels.to(embeddings.device)
        with torch.autocast(embeddings.device.type, enabled=False):
            embeddings = at_least_float32(embeddings)
            wide = for_exact_products(embeddings)
            s = self.distance(wide, wide).to(embeddings.dtype)
            others = ~torch.eye(len(s), dtype=torch.bool, device=s.device)
            t = (labels[:, None] == labels).to(s.dtype)
            context = ((t - self.contextual(s)).square() * others).mean()
            regular = (s.mean() - self.mean_similarity).square()
            contrastive = self.contrastive(embeddings, labels)
            rest = 1 - self.lam - self.gamma
            return self.lam * context + self.gamma * regular + rest * contrastive

    def contextual(self, s: Tensor) -> Tensor:
        """Compute the contextual similarity c [N, N] of similarities [N, N]."""
        m = self._neighbors(s, self.k)
        overlap = (m @ m.t()) / m.sum(1, keepdim=True).detach()
        rest = 1 - m
        # none is outside of the neighbourhood where the batch is small
        apart = (rest @ rest.t()) / rest.sum(1, keepdim=True).detach().clamp(min=1)
        w = (overlap + apart) / 2 * m
        half = self._neighbors(s, self.k // 2)
        r = half * half.t()
        v = (r @ w) / r.sum(1, keepdim=True)
        return (v + v.t()) / 2

    def _neighbors(self, s: Tensor, k: int) -> Tensor:
        """m [N, N], with the gradient of a line."""
        nearness = 2 * s
        last = nearness.detach().topk(min(k, len(s)), dim=1).values[:, -1:]
        step = (nearness.detach() + self.eps >= last).to(s.dtype)
        return step + SLOPE * (nearness - nearness.detach())

    def extra_repr(self) -> str:
        return f"k={self.k}, eps={self.eps}, lam={self.lam}, gamma={self.gamma}"
