"""The training loop, its configuration and its measurements."""

from bgl.training.build import build_model, make_accelerator
from bgl.training.config import TrainConfig
from bgl.training.evaluation import RECALL_AT, embed, evaluate
from bgl.training.loop import Progress, TrainResult, View, train

__all__ = [
    "RECALL_AT",
    "Progress",
    "TrainConfig",
    "TrainResult",
    "View",
    "build_model",
    "embed",
    "evaluate",
    "make_accelerator",
    "train",
]
