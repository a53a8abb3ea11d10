"""The training loop, its configuration and its measurements."""

from bgl.training.config import DyBGROptions, TrainConfig
from bgl.training.evaluation import embed, evaluate
from bgl.training.loop import Progress, TrainResult, build_model, make_accelerator, measure, train

__all__ = [
    "DyBGROptions",
    "Progress",
    "TrainConfig",
    "TrainResult",
    "build_model",
    "embed",
    "evaluate",
    "make_accelerator",
    "measure",
    "train",
]
