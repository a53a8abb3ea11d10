"""Soft targets: what a teacher sees in a batch, diffused along a graph, and learned by KL."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bgl._checks import check_edge_index, check_matrix, check_real, describe
from bgl._precision import at_least_float32
from bgl.losses.batch import check_pairs, cosines

# Largest share of the diffusion: nearer to 1, I - wA is singular in float32.
LARGEST_W = 1 - 1e-6


class SoftTargetLoss(nn.Module):
    r"""Learn the similarities that a teacher sees in the batch.

    The self-distillation of `"S2SD: Simultaneous Similarity-based Self-Distillation for Deep
    Metric Learning" <https://arxiv.org/abs/2009.08348>`_ (ICML 2021, Eq. 2), also of OBD-SD (see
    :func:`diffuse`). With :math:`S` the cosines of the embeddings,

    .. math::
        P = \operatorname{softmax}(S / \tau), \qquad
        \mathcal L = \frac 1N \sum_{ij} q_{ij} \log \frac{q_{ij}}{p_{ij}},

    where each row of :math:`Q` sums to 1: :math:`\operatorname{softmax}(S_T / \tau)` of a
    teacher's embeddings, as :meth:`targets` computes it, or what :func:`diffuse` makes of it.
    Nothing is differentiated by the targets.

    Args:
        temperature: :math:`\tau` (> 0).

    Shapes:
        - ``embeddings`` [N, D]; ``targets`` [N, N]
        - output: scalar

    Raises:
        ValueError: If an argument has the wrong type, rank, shape or range.

    Example:
        >>> loss, x = SoftTargetLoss(), torch.eye(3)
        >>> loss(x, loss.targets(torch.ones(3, 5)))
        tensor(0.1195)
    """

    def __init__(self, temperature: float = 1.0) -> None:
        super().__init__()
        self.temperature = check_real(temperature, "temperature", 0.0, exclusive=True)

    def forward(self, embeddings: Tensor, targets: Tensor) -> Tensor:
        """Compute the loss of ``embeddings`` [N, D] for ``targets`` [N, N]."""
        cosine = cosines(embeddings)
        check_pairs(targets, "targets", len(cosine))
        with torch.autocast(embeddings.device.type, enabled=False):
            log_p = (cosine / self.temperature).log_softmax(1)
            return F.kl_div(log_p, targets.detach().to(log_p.dtype), reduction="batchmean")

    @torch.no_grad()
    def targets(self, embeddings: Tensor) -> Tensor:
        """Compute softmax(S / τ) [N, N] of a teacher's ``embeddings`` [N, D]."""
        with torch.autocast(embeddings.device.type, enabled=False):
            return (cosines(embeddings) / self.temperature).softmax(1)

    def extra_repr(self) -> str:
        return f"temperature={self.temperature}"


@torch.no_grad()
def diffuse(targets: Tensor, edge_index: Tensor, edge_weight: Tensor, w: float) -> Tensor:
    r"""Diffuse soft targets along the edges of a graph.

    The online batch diffusion of `"Self-distillation with Online Diffusion on Batch Manifolds
    Improves Deep Metric Learning" <https://arxiv.org/abs/2211.07566>`_, for any graph,

    .. math::
        Q = (1 - w) (I - w A)^{-1} P = (1 - w) \sum_{t \ge 0} w^t A^t P .

    Rows of :math:`Q` sum to 1 where those of :math:`A` and :math:`P` do. The system is solved
    without a look at it: nothing waits for a GPU.

    Args:
        targets: P.
        edge_index: Edges from source j to target i.
        edge_weight: a_ij ≥ 0, which sum to 1 for each target.
        w: Share w of the diffusion, in [0, 1); at 0 the targets stay as they are.

    Shapes:
        - ``targets`` [N, N]; ``edge_index`` [2, E]; ``edge_weight`` [E]
        - output [N, N]

    Raises:
        ValueError: If an argument has the wrong type, rank, shape or range.

    Example:
        >>> edge_index = torch.tensor([[0, 1], [1, 0]])
        >>> diffuse(torch.eye(2), edge_index, torch.ones(2), w=0.5)
        tensor([[0.6667, 0.3333],
                [0.3333, 0.6667]])
    """
    check_matrix(targets, "targets", "[N, N]")
    n = len(targets)
    check_pairs(targets, "targets", n)
    check_edge_index(edge_index, n)
    if not isinstance(edge_weight, Tensor) or edge_weight.shape != edge_index.shape[1:]:
        raise ValueError(
            f"Expected argument `edge_weight` to hold a weight for each of {edge_index.size(1)} "
            f"edges, but got {describe(edge_weight)}"
        )
    check_real(w, "w", 0.0, LARGEST_W)
    source, target = edge_index
    with torch.autocast(targets.device.type, enabled=False):
        p = at_least_float32(targets)
        a = torch.zeros_like(p)
        a.index_put_((target, source), edge_weight.to(p.dtype), accumulate=True)
        system = torch.eye(n, dtype=p.dtype, device=p.device) - w * a
        return torch.linalg.solve_ex(system, (1 - w) * p).result
