"""The training loop, its configuration and its measurements."""

from bgl._extras import extra

with extra("train"):
    from bgl.training.adapting import AdaptConfig, adapt_encoder
    from bgl.training.build import build_encoder, build_model, make_accelerator
    from bgl.training.config import TrainConfig
    from bgl.training.evaluation import (
        Evaluator,
        evaluate,
        evaluate_encoder,
    )
    from bgl.training.interruption import Interrupted, Interruption
    from bgl.training.loop import TrainResult, train
    from bgl.training.progress import Progress, ProgressList, TrainingRun
    from bgl.training.teachers import (
        TEACHERS,
        DiffusedTeacher,
        Lesson,
        RefinedTeacher,
        Teacher,
        WideTeacher,
    )

__all__ = [
    "TEACHERS",
    "AdaptConfig",
    "DiffusedTeacher",
    "Evaluator",
    "Interrupted",
    "Interruption",
    "Lesson",
    "Progress",
    "ProgressList",
    "RefinedTeacher",
    "Teacher",
    "TrainConfig",
    "TrainResult",
    "TrainingRun",
    "WideTeacher",
    "adapt_encoder",
    "build_encoder",
    "build_model",
    "evaluate",
    "evaluate_encoder",
    "make_accelerator",
    "train",
]
