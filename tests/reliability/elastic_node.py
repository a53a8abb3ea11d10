"""What the nodes train in the test of elastic restarts; the second one is lost once."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from tiny_training import make_splits, tiny

from bgl.training import Progress, TrainConfig, train
from bgl.training.progress import TrainingRun

MOMENT = 6  # in the second of three epochs


class LostOnce(Progress):
    """Kill the launcher and this process at a moment, as if the machine went down."""

    def __init__(self, note: Path) -> None:
        self.note, self.count = note, 0

    def begin(self, run: TrainingRun, epochs: int) -> None:
        if self.note.exists() and run.resumed and os.environ["RANK"] == "0":
            self.note.write_text(f"resumed after {epochs} epochs")

    def advance(self, amount: int) -> None:
        self.count += bool(amount)
        if self.count == MOMENT and os.environ["RANK"] == "1" and not self.note.exists():
            self.note.touch()
            os.kill(os.getppid(), signal.SIGKILL)
            os.kill(os.getpid(), signal.SIGKILL)


def config() -> TrainConfig:
    return tiny(method="dybgr", augmentation="iaa", epochs=3)


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    train(config(), make_splits(), folder / "run", LostOnce(folder / "lost"))
