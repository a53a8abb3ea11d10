"""Synthetic embeddings around each sample, as wide as its class."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bgl._checks import check_int, check_real, describe
from bgl.augment.correction import NeighborCorrection
from bgl.augment.statistics import ClassStatistics
from bgl.hyperbolic import from_poincare_ball, to_poincare_ball


@dataclass(frozen=True)
class StrengthSchedule:
    """A strength that falls in steps over a run, by default as in the released code.

    Args:
        strength: λ at the start.
        steps: Pairs (progress, factor) with rising progress: up to and including this part of
            all epochs, λ is ``factor * strength``; after the last, the last factor stays.

    Example:
        >>> schedule = StrengthSchedule(strength=0.8)
        >>> [round(schedule(epoch / 10), 3) for epoch in (1, 4, 5, 8, 9)]
        [0.8, 0.8, 0.72, 0.6, 0.48]
    """

    strength: float = 0.8
    steps: tuple[tuple[float, float], ...] = ((0.4, 1.0), (0.6, 0.9), (0.8, 0.75), (1.0, 0.6))

    def __post_init__(self) -> None:
        check_real(self.strength, "strength", 0.0)

    def __call__(self, progress: float) -> float:
        check_real(progress, "progress")
        factor = next((f for end, f in self.steps if progress <= end), self.steps[-1][1])
        return factor * self.strength


class IntraClassAugmentation(nn.Module):
    r"""Copies of every embedding, drawn from the spread of its class (Eq. 17 of IAA, 2022).

    .. math::
        z^{(m)}_n \sim \mathcal{N}(z_n,\ \lambda \hat\Sigma_{y_n}), \qquad m = 1, \dots, M,

    independently, each with the whole of λΣ̂ (the released code takes another root of Σ for each
    further copy). Σ̂ is the variance of the statistics, after the correction if there is one.
    Gradients reach :math:`z_n` through every copy, with weight one, and nothing else. A class
    without variance (not seen yet, or alone and not corrected) gives exact copies.

    Where the statistics have a ``curvature``, embeddings and copies are points of that Poincaré
    ball: the noise is added in the tangent space at its origin, from which the copies are mapped
    back (without clipping), and the gradient goes through both maps.

    Σ̂ and its factor are computed anew only when the statistics have changed. With full
    covariances that means an eigendecomposition per class: re-estimate every few epochs rather
    than at every step.

    Args:
        statistics: The running statistics, updated elsewhere.
        correction: The neighbor correction, or None to use the variances as they are.
        strength: λ ≥ 0, or a schedule that maps the training progress in [0, 1] to it, or
            ``"released"`` for :class:`StrengthSchedule` as in the released code, from 0.8 down
            to 0.48. Schedules start at progress 0; :meth:`set_epoch` moves them on.
        num_samples: Number M of copies.

    Raises:
        ValueError: If ``statistics`` is something else, or a value is out of range.

    Example:
        >>> statistics = ClassStatistics(num_classes=2, channels=2)
        >>> statistics.estimate(torch.tensor([[0.0, 0.0], [2.0, 0.0]]), torch.tensor([1, 1]))
        >>> augmentation = IntraClassAugmentation(statistics, strength=0.25, num_samples=2)
        >>> augmentation(torch.tensor([[5.0, 5.0]]), torch.tensor([1]), noise=torch.ones(2, 1, 2))
        (tensor([[5.5000, 5.0000], [5.5000, 5.0000]]), tensor([1, 1]))
    """

    def __init__(
        self,
        statistics: ClassStatistics,
        correction: NeighborCorrection | None = None,
        strength: float | str | Callable[[float], float] = 0.8,
        num_samples: int = 3,
    ) -> None:
        super().__init__()
        if not isinstance(statistics, ClassStatistics):
            raise ValueError(
                "Expected argument `statistics` to be a ClassStatistics, "
                f"got {describe(statistics)}"
            )
        self.statistics = statistics
        self.correction = correction
        self.num_samples = check_int(num_samples, "num_samples", 1)
        if strength == "released":
            strength = StrengthSchedule()
        if isinstance(strength, str):
            raise ValueError(
                "Expected argument `strength` to be a number, a schedule or 'released', "
                f"got {strength!r}"
            )
        self.schedule: Callable[[float], float] | None = None
        if callable(strength):
            self.schedule = strength
            strength = strength(0.0)
        self.strength = check_real(strength, "strength", 0.0)
        self._factor: Tensor | None = None
        self._factor_version: tuple[tuple[int, int], ...] = ()

    def set_epoch(self, epoch: int, num_epochs: int) -> None:
        """Move the schedule to ``epoch`` of ``num_epochs``, counted from 1."""
        check_int(epoch, "epoch", 0)
        check_int(num_epochs, "num_epochs", max(1, epoch))
        if self.schedule is not None:
            self.strength = check_real(self.schedule(epoch / num_epochs), "strength", 0.0)

    def forward(self, z: Tensor, y: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Draw the copies.

        Args:
            z: Embeddings [N, D], before any normalisation.
            y: Labels [N].
            noise: Standard normal draws [M, N, D] to use instead of fresh ones.

        Returns:
            The copies [M·N, D], copy m of sample n in row m·N + n, and their labels [M·N].

        Raises:
            ValueError: If shapes or dtypes are wrong, or the statistics do not know a label.
        """
        self.statistics.check(z, y)
        shape = (self.num_samples, *z.shape)
        if noise is None:
            noise = torch.randn(shape, dtype=z.dtype, device=z.device)
        elif not isinstance(noise, Tensor) or noise.shape != shape:
            raise ValueError(
                f"Expected argument `noise` to have shape {list(shape)}, got {describe(noise)}"
            )
        curvature = self.statistics.curvature
        if curvature is not None:
            z = from_poincare_ball(z, c=curvature)
        factor = self.factor()[self.statistics.rows(y)].to(z.dtype)
        diagonal = factor.dim() == 2
        step = factor * noise if diagonal else torch.einsum("nde,mne->mnd", factor, noise)
        copies = z + self.strength**0.5 * step.to(z.dtype)
        if curvature is not None:
            copies = to_poincare_ball(copies, c=curvature)
        return copies.flatten(0, 1), y.repeat(self.num_samples)

    @torch.no_grad()
    def factor(self) -> Tensor:
        """Compute a root L of Σ̂ = L·Lᵀ for every class, anew only if the statistics have changed.

        Standard deviations [K, D], or matrices [K, D, D]. What rounding (or a correction) may
        have left below zero, among variances or eigenvalues, counts as zero.
        """
        version = self.statistics.version
        if self._factor is None or version != self._factor_version:
            variance = self.statistics.variance
            if self.correction is not None:
                variance = self.correction(self.statistics)
            if variance.dim() == 2:
                self._factor = variance.clamp(min=0).sqrt()
            else:
                values, vectors = torch.linalg.eigh(variance)
                self._factor = vectors * values.clamp(min=0).sqrt().unsqueeze(1)
            self._factor_version = version
        return self._factor

    def extra_repr(self) -> str:
        return f"strength={self.schedule or self.strength}, num_samples={self.num_samples}"
