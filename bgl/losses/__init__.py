"""Losses that drop in where pytorch-metric-learning's do, and all of them by name."""

from bgl.losses.contextual import ContextualSimilarityLoss
from bgl.losses.factory import LOSSES, MINERS, MinedLoss, create_loss, create_miner
from bgl.losses.pairwise import PairwiseCrossEntropyLoss
from bgl.losses.relaxed import RelatedNeighborsLoss, RelaxedContrastiveLoss
from bgl.losses.soft_targets import SoftTargetLoss, diffuse

__all__ = [
    "LOSSES",
    "MINERS",
    "ContextualSimilarityLoss",
    "MinedLoss",
    "PairwiseCrossEntropyLoss",
    "RelatedNeighborsLoss",
    "RelaxedContrastiveLoss",
    "SoftTargetLoss",
    "create_loss",
    "create_miner",
    "diffuse",
]
