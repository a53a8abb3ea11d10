"""Augmentations by name, and the epochs of a run they are used in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from bgl._checks import check_int, check_real
from bgl._registry import Registry
from bgl.augment.correction import NeighborCorrection
from bgl.augment.intra_class import IntraClassAugmentation, StrengthSchedule
from bgl.augment.statistics import ClassStatistics


@dataclass
class AugmentationPlan:
    """An augmentation of embeddings, and the epochs of a run it is used in.

    Args:
        augmentation: Called as ``augmentation(z, y)``, see :class:`bgl.augment.AugmentedLoss`. Its
            ``state_dict`` goes into checkpoints. If it has ``set_epoch(epoch, num_epochs)``, that
            is called before every epoch, counted from 1.
        statistics: Class statistics to estimate over the training set, a part of
            ``augmentation``; None if it needs none.
        start: Share of the epochs before the first synthetic embeddings.
        update_every: Epochs from one estimate of the statistics to the next.

    Raises:
        ValueError: If ``start`` is not in [0, 1] or ``update_every`` below 1.
    """

    augmentation: nn.Module
    statistics: ClassStatistics | None = None
    start: float = 0.0
    update_every: int = 1

    def __post_init__(self) -> None:
        check_real(self.start, "start", 0.0, 1.0)
        check_int(self.update_every, "update_every", 1)

    def active(self, epoch: int, num_epochs: int) -> bool:
        """Return whether it is used in an epoch, counted from 0."""
        return epoch >= round(self.start * num_epochs)

    def statistics_due(self, epoch: int, num_epochs: int) -> ClassStatistics | None:
        """Return the statistics, if they are to be estimated before an epoch, counted from 0."""
        since = epoch - round(self.start * num_epochs)
        return self.statistics if since >= 0 and since % self.update_every == 0 else None

    def set_epoch(self, epoch: int, num_epochs: int) -> None:
        """Move a schedule of the augmentation to an epoch, counted from 1."""
        if callable(move := getattr(self.augmentation, "set_epoch", None)):
            move(epoch, num_epochs)


def iaa(
    num_classes: int,
    channels: int,
    curvature: float | None = None,
    *,
    start: float = 0.3,
    update_every: int = 2,
    strength: float = 0.8,
    schedule: bool = False,
    num_samples: int = 3,
    momentum: float = 0.2,
    covariance: str = "diagonal",
    correction: bool = True,
    num_neighbors: int = 25,
    beta: float = 0.1,
    gamma: float = 0.1,
    max_count: int = 40,
    sigma_mean: float = 1.0,
    sigma_var: float = 1.0,
) -> AugmentationPlan:
    """Plan the intra-class adaptive augmentation of a run.

    Args:
        num_classes: Number of training classes.
        channels: Dimension of the embeddings.
        curvature: Curvature c of the Poincaré ball they lie in; None: Euclidean.
        start: Share of the epochs before the first synthetic embeddings.
        update_every: Epochs from one estimate over the training set to the next.
        strength: λ, the share of the class's variance; constant unless ``schedule``.
        schedule: Let the strength fall over the epochs as in the released code.
        num_samples: Synthetic copies per embedding.
        momentum: Largest share of an older estimate that survives the next.
        covariance: "diagonal" or "full".
        correction: Correct the variance of small classes by their neighbours'.
        num_neighbors: Neighbours of a class.
        beta: How fast the correction fades with class size.
        gamma: Share of the variance of all classes in the correction.
        max_count: Largest class that is corrected.
        sigma_mean: Scale of the distance between class means.
        sigma_var: Scale of the distance between class variances.
    """
    statistics = ClassStatistics(num_classes, channels, momentum, covariance, curvature=curvature)
    neighbors = None
    if correction:
        neighbors = NeighborCorrection(num_neighbors, beta, gamma, max_count, sigma_mean, sigma_var)
    augmentation = IntraClassAugmentation(
        statistics, neighbors, StrengthSchedule(strength) if schedule else strength, num_samples
    )
    return AugmentationPlan(augmentation, statistics, start, update_every)


# Functions called with the number of training classes, the dimension of the embeddings, the
# curvature of their space or None, and the augmentation's own options.
AUGMENTATIONS: Registry[Callable[..., AugmentationPlan]] = Registry(
    "augmentation", 3, {"iaa": iaa}, grouped=True
)
