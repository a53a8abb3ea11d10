"""Intra-class adaptive augmentation (IAA): extra embeddings drawn from each class's own spread.

Fu et al., "Intra-class Adaptive Augmentation with Neighbor Correction for Deep Metric Learning",
IEEE Transactions on Multimedia, 2022.
"""

from bgl.augment.correction import NeighborCorrection
from bgl.augment.intra_class import IntraClassAugmentation, StrengthSchedule
from bgl.augment.loss import AugmentedLoss
from bgl.augment.plan import AUGMENTATIONS, AugmentationPlan, iaa
from bgl.augment.statistics import ClassStatistics

__all__ = [
    "AUGMENTATIONS",
    "AugmentationPlan",
    "AugmentedLoss",
    "ClassStatistics",
    "IntraClassAugmentation",
    "NeighborCorrection",
    "StrengthSchedule",
    "iaa",
]
