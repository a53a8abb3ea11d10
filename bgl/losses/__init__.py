"""Losses that drop in where pytorch-metric-learning's do, and all of them by name."""

from bgl.losses.factory import LOSS_NAMES, MINER_NAMES, MinedLoss, create_loss, create_miner
from bgl.losses.pairwise import PairwiseCrossEntropyLoss

__all__ = [
    "LOSS_NAMES",
    "MINER_NAMES",
    "MinedLoss",
    "PairwiseCrossEntropyLoss",
    "create_loss",
    "create_miner",
]
