"""The training loop, its configuration and its measurements."""

from bgl.training.build import build_model, make_accelerator
from bgl.training.config import TrainConfig
from bgl.training.evaluation import RECALL_AT, embed, evaluate, recall_at
from bgl.training.loop import TrainResult, View, train
from bgl.training.progress import Progress, Several

__all__ = [
    "RECALL_AT",
    "Progress",
    "Several",
    "TrainConfig",
    "TrainResult",
    "View",
    "build_model",
    "embed",
    "evaluate",
    "make_accelerator",
    "recall_at",
    "train",
]
