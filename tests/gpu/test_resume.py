"""A run that was stopped on a GPU ends with the same bits, and resumes on other machines."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_training import assert_same_files, make_splits, tiny

from bgl.training import Interrupted, Progress, TrainConfig, train

pytestmark = pytest.mark.gpu


class StopAt(Progress):
    """Sends this process SIGTERM in the middle of the second epoch."""

    def start(self, what: str, total: int) -> None:
        self.here = what.startswith("epoch 2")

    def advance(self, amount: int) -> None:
        if amount and self.here:
            os.kill(os.getpid(), signal.SIGTERM)


def config(device: torch.device, **options: Any) -> TrainConfig:
    """Noise is drawn for the batch and for the graph."""
    return tiny(
        method="random",
        augmentation="iaa",
        device=device.type,
        deterministic=True,
        batches_per_epoch=3,
        options={"random": {"k": 4}, "iaa": {"start": 0.0, "num_neighbors": 3}},
        **options,
    )


def stopped(config: TrainConfig, folder: Path) -> Path:
    with pytest.raises(Interrupted):
        train(config, make_splits(), folder, StopAt())
    assert (folder / "checkpoint.pt").exists()
    return folder


def test_a_stopped_run_ends_with_the_same_bits(device: torch.device, tmp_path: Path) -> None:
    whole = train(config(device), make_splits(), tmp_path / "whole")
    folder = stopped(config(device), tmp_path / "stopped")
    torch.manual_seed(99)  # another process has other random numbers
    resumed = train(config(device), make_splits(), folder)
    assert_same_files(tmp_path / "whole", folder)
    assert resumed.metrics == whole.metrics


@pytest.mark.parametrize("begun_on", ["gpu", "cpu"])
def test_a_run_resumes_on_another_device(
    device: torch.device, tmp_path: Path, begun_on: str
) -> None:
    pair = [device, torch.device("cpu")]
    first, second = pair if begun_on == "gpu" else reversed(pair)
    folder = stopped(config(first), tmp_path)
    assert len(train(config(second), make_splits(), folder).history) == 2
