"""The training loop, its configuration and its measurements."""

from bgl._extras import extra

with extra("train"):
    from bgl.training.build import build_model, make_accelerator
    from bgl.training.config import TrainConfig
    from bgl.training.evaluation import (
        View,
        embed,
        evaluate,
        evaluate_encoder,
    )
    from bgl.training.interruption import Interrupted, Interruption
    from bgl.training.loop import TrainResult, train
    from bgl.training.progress import Progress, Several

__all__ = [
    "Interrupted",
    "Interruption",
    "Progress",
    "Several",
    "TrainConfig",
    "TrainResult",
    "View",
    "build_model",
    "embed",
    "evaluate",
    "evaluate_encoder",
    "make_accelerator",
    "train",
]
