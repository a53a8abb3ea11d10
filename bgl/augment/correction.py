"""Variance of small classes, corrected with that of the classes around them."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn

from bgl._checks import check_int, check_real
from bgl.augment.statistics import ClassStatistics

# Largest temporary of the search for neighbours, in elements: 16 MiB of float32. A handful of
# them live at once.
_CHUNK = 2**22

# Kish's effective number, 1 / Σ w², below which "one neighbour" is what there is to say.
_ONE_NEIGHBOR = 1.5


class NeighborCorrection(nn.Module):
    r"""Neighbor correction of Fu et al., IAA, 2022, Eq. 9-16, for all classes at once.

    A class with few samples borrows the variance of the classes whose means are close, which
    tend to vary alike:

    .. math::
        D_m(i, k) &= \| \mu_i^2 - \mu_k^2 \|_2, \qquad
            D_{cv}(i, k) = \| \Sigma_i - \Sigma_k \|_2 & \text{(9, 10)} \\
        w_i &= n_i \exp\left(-\frac{D_m(i,k)^2}{2\sigma_m^2}
            - \frac{D_{cv}(i,k)^2}{2\sigma_{cv}^2}\right) & \text{(13)} \\
        \Sigma^{nbr}_k &= \sum_{i \in N_k} w_i \Sigma_i \Big/ \sum_{i \in N_k} w_i & \text{(12)} \\
        \Sigma^{all} &= \sum_i n_i \Sigma_i \Big/ \sum_i n_i & \text{(14)} \\
        \hat\Sigma_k &= (1 - \alpha_k) \Sigma_k
            + \alpha_k (\gamma \Sigma^{all} + (1 - \gamma) \Sigma^{nbr}_k) & \text{(15)} \\
        \alpha_k &= [n_k \le \tau] \,/\, (1 + \log(1 + \beta (n_k - 1))) & \text{(16)}

    with squares of means taken channel by channel, :math:`N_k` the classes nearest by
    :math:`D_m` (11), and n_k the `class_size` of the statistics. Classes with one sample have no
    variance to lend: they are no neighbours and no part of Eq. 14, and neither is k of its own.
    Where there are fewer such classes than ``num_neighbors``, those are used. A class without
    any, or without samples of its own, takes :math:`\Sigma^{all}` for :math:`\Sigma^{nbr}`;
    where no class has two samples, all variances are 0.

    Distances are raw, in (squared) units of the embedding, as printed. Weights are computed in
    log space: in hundreds of channels the exponentials underflow. Even so, large distances
    leave all the weight with one neighbour; :attr:`effective_neighbors` shows it, and a warning,
    given once, says so if it happens to more than half of the corrected classes. Raise
    ``sigma_mean`` and ``sigma_var`` to the scale of the distances then.

    Time is O(K²·D); memory beyond the result O(K·D) and blocks of some 16 MiB.

    Args:
        num_neighbors: Size of :math:`N_k`.
        beta: How fast the correction fades with class size, ≥ 0.
        gamma: Share of the variance of all classes in the correction, in [0, 1].
        max_count: τ, the largest class that is corrected at all.
        sigma_mean: Scale of :math:`D_m`, > 0.
        sigma_var: Scale of :math:`D_{cv}`, > 0.

    Attributes:
        effective_neighbors: After a call, :math:`(\sum w_i)^2 / \sum w_i^2` of every class [K],
            between 1 and ``num_neighbors``; 0 for classes without neighbours. None before.

    Example:
        >>> statistics = ClassStatistics(num_classes=3, channels=1)
        >>> statistics.estimate(torch.tensor([[0.0], [2.0], [0.0], [1.0], [5.0]]),
        ...                     torch.tensor([0, 0, 1, 1, 2]))
        >>> statistics.variance.flatten().tolist()
        [1.0, 0.25, 0.0]
        >>> correction = NeighborCorrection(gamma=0.0, sigma_mean=10.0)
        >>> borrowed = correction(statistics)[2]  # one sample: all from its neighbours 0 and 1
        >>> bool(0.25 < borrowed < 1.0)
        True
        >>> correction.effective_neighbors.round(decimals=1).tolist()
        [1.0, 1.0, 2.0]
    """

    effective_neighbors: Tensor | None

    def __init__(
        self,
        num_neighbors: int = 25,
        beta: float = 0.1,
        gamma: float = 0.1,
        max_count: int = 40,
        sigma_mean: float = 1.0,
        sigma_var: float = 1.0,
    ) -> None:
        super().__init__()
        self.num_neighbors = check_int(num_neighbors, "num_neighbors", 1)
        self.beta = check_real(beta, "beta", 0.0)
        self.gamma = check_real(gamma, "gamma", 0.0, 1.0)
        self.max_count = check_int(max_count, "max_count", 0)
        self.sigma_mean = check_real(sigma_mean, "sigma_mean", 0.0, 1e12, exclusive=True)
        self.sigma_var = check_real(sigma_var, "sigma_var", 0.0, 1e12, exclusive=True)
        self.effective_neighbors = None
        self._warned = False

    @torch.no_grad()
    def forward(self, statistics: ClassStatistics) -> Tensor:
        """Compute the corrected variances, in the shape of ``statistics.variance``."""
        spread = statistics.variance.flatten(1)
        size = statistics.class_size
        alpha = class_weight(size.to(spread.dtype), self.beta, self.max_count)
        overall = global_variance(spread, size)
        neighbor = overall.expand_as(spread).clone()
        effective = spread.new_zeros(size.size(0))

        # Distances do not see a common shift, and rounding in `cdist` grows with the norms.
        points = statistics.center.square()
        points = points - points.mean(dim=0)
        k = min(self.num_neighbors, size.size(0) - 1)
        step = max(1, _CHUNK // max(size.size(0), k * spread.size(1)))
        for rows in torch.arange(size.size(0), device=size.device).split(step):
            index, usable = nearest_classes(points, size, rows, k)
            weight = self._weights(points, spread, size, rows, index, usable)
            found = usable.any(dim=1, keepdim=True)
            borrowed = torch.einsum("ck,ckf->cf", weight, spread[index])
            neighbor[rows] = borrowed.where(found, overall)
            squares = weight.square().sum(dim=1)
            effective[rows] = found.squeeze(1) / squares.masked_fill(squares == 0, 1)

        self.effective_neighbors = effective
        self._warn_if_alone(effective[(alpha > 0) & (effective > 0)], choice=int((size > 1).sum()))
        corrected = mixed_variance(spread, neighbor, overall, alpha, self.gamma)
        return corrected.view_as(statistics.variance)

    def _weights(
        self,
        points: Tensor,
        spread: Tensor,
        size: Tensor,
        rows: Tensor,
        index: Tensor,
        usable: Tensor,
    ) -> Tensor:
        """Eq. 13, divided by its sum [C, k]; 0 for what is not usable."""
        mean = (points[index] - points[rows].unsqueeze(1)).square().sum(dim=2)
        variance = (spread[index] - spread[rows].unsqueeze(1)).square().sum(dim=2)
        logits = size[index].to(spread.dtype).log()
        logits = logits - mean / (2 * self.sigma_mean**2) - variance / (2 * self.sigma_var**2)
        return logits.masked_fill(~usable, -torch.inf).softmax(dim=1).masked_fill(~usable, 0)

    def _warn_if_alone(self, effective: Tensor, choice: int) -> None:
        # With two classes that can lend, each of them has one neighbour whatever the scales.
        alone = int((effective < _ONE_NEIGHBOR).sum())
        if self._warned or self.num_neighbors == 1 or choice < 3 or 2 * alone <= len(effective):
            return
        self._warned = True
        warnings.warn(
            f"NeighborCorrection leaves {alone} of {len(effective)} corrected classes with one "
            f"effective neighbour (of {self.num_neighbors}): the distances between classes are "
            f"large against sigma_mean={self.sigma_mean:g} and sigma_var={self.sigma_var:g}",
            stacklevel=3,
        )

    def extra_repr(self) -> str:
        return (
            f"num_neighbors={self.num_neighbors}, beta={self.beta}, gamma={self.gamma}, "
            f"max_count={self.max_count}, sigma_mean={self.sigma_mean}, "
            f"sigma_var={self.sigma_var}"
        )


def class_weight(size: Tensor, beta: float, max_count: int) -> Tensor:
    """Eq. 16: how far classes of ``size`` samples [K] are corrected; empty ones wholly.

    Example:
        >>> class_weight(torch.tensor([1, 11, 40, 41]), beta=0.1, max_count=40)
        tensor([1.0000, 0.5906, 0.3862, 0.0000])
    """
    alpha = 1 / (1 + torch.log1p(beta * (size - 1).clamp(min=0)))
    return alpha.masked_fill(size > max_count, 0)


def global_variance(spread: Tensor, size: Tensor) -> Tensor:
    """Eq. 14: the average of ``spread`` [K, F] over the samples of classes with at least two."""
    weight = size.masked_fill(size < 2, 0).to(spread.dtype)
    return weight @ spread / weight.sum().clamp(min=1)


def mixed_variance(
    spread: Tensor, neighbor: Tensor, overall: Tensor, alpha: Tensor, gamma: float
) -> Tensor:
    """Eq. 15 for rows [K, F]: own, neighbours' [K, F] and overall [F] variance, by alpha [K]."""
    return torch.lerp(spread, torch.lerp(neighbor, overall, gamma), alpha.unsqueeze(1))


def nearest_classes(points: Tensor, size: Tensor, rows: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Eq. 11: for each class in ``rows`` [C], the ``k`` others nearest in ``points`` [K, D].

    Returns their indices [C, k], nearest first, and which of them may be used [C, k]: classes
    with at least two samples, and only if the class itself has one at all.
    """
    distance = torch.cdist(points[rows], points).masked_fill_(size < 2, torch.inf)
    distance[torch.arange(len(rows), device=rows.device), rows] = torch.inf
    nearest = distance.topk(k, dim=1, largest=False)
    return nearest.indices, nearest.values.isfinite() & (size[rows] > 0).unsqueeze(1)
