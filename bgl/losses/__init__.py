"""Losses that drop in where pytorch-metric-learning's do, and all of them by name."""

from bgl.losses.factory import LOSSES, MINERS, MinedLoss, create_loss, create_miner
from bgl.losses.pairwise import PairwiseCrossEntropyLoss

__all__ = [
    "LOSSES",
    "MINERS",
    "MinedLoss",
    "PairwiseCrossEntropyLoss",
    "create_loss",
    "create_miner",
]
