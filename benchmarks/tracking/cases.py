"""Our side of cases of ``benchmarks/speed``, timed by asv; results: ``docs/results/tracking``.

asv machine --yes --machine epyc-2-cores  # of the stored figures
asv run --python same --machine epyc-2-cores --set-commit-hash $(git rev-parse HEAD)
asv compare --machine epyc-2-cores --factor 1.2 COMMIT COMMIT
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))  # asv imports this file from elsewhere

import torch

from benchmarks.speed.case import Scale
from benchmarks.speed.cases import CASES

NAMES = ("dybgr", "dybgr-block", "bgformer", "conv", "pairwise-loss", "update", "recall-small")


class Cases:
    """CPU time of each case on one thread."""

    params = NAMES
    param_names = ("case",)
    timeout = 300  # seconds
    timer = time.process_time
    repeat = (3, 10, 5.0)  # at least, at most, seconds; twice

    def setup(self, name: str) -> None:
        """Build the inputs, and do the work once."""
        torch.set_num_threads(1)
        (case,) = [case for case in CASES if case.name == name]
        self.work = case.build(Scale()).ours["bgl"]
        self.work()

    def time_case(self, name: str) -> None:
        """Do the work once."""
        self.work()
