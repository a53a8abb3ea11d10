"""What the nodes train in the test of elastic restarts; the second one is lost once."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from tiny_training import make_splits, tiny

from bgl.training import Progress, train

MOMENT = 6  # in the third epoch: a step after it, and a checkpoint before


class LostOnce(Progress):
    """Kill the launcher and this process at a moment, as if the machine went down."""

    def __init__(self, note: Path) -> None:
        self.note, self.count = note, 0

    def advance(self, amount: int) -> None:
        self.count += bool(amount)
        if self.count == MOMENT and os.environ["RANK"] == "1" and not self.note.exists():
            self.note.touch()
            os.kill(os.getppid(), signal.SIGKILL)
            os.kill(os.getpid(), signal.SIGKILL)


def config():
    return tiny(method="dybgr", augmentation="iaa", epochs=3)


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    train(config(), make_splits(), folder / "run", LostOnce(folder / "lost"))
