"""A training of a second: colours to tell apart, a tiny model, and how to compare two runs."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from bgl.datasets import ImageDataset, Splits
from bgl.training import Progress, TrainConfig

SIDE, WIDTH, DIM = 32, 96, 8  # image side, features of test_resnet, embedding


def part(
    prefix: str, num_classes: int, per_class: int, noise: int, contrast: int = 68
) -> ImageDataset:
    """Classes of one colour each, under noise."""
    labels = torch.arange(num_classes).repeat_interleave(per_class)
    colours = 128 + torch.randint(-contrast, contrast + 1, (num_classes, 3, 1, 1))
    grain = torch.randint(-noise, noise + 1, (len(labels), 3, SIDE, SIDE))
    images = (colours[labels] + grain).clamp(0, 255).to(torch.uint8)
    names = [f"{prefix}{c}" for c in range(num_classes)]
    return ImageDataset(images, labels, names, paths=[f"{prefix}/{i}" for i in range(len(labels))])


def make_splits() -> Splits:
    torch.manual_seed(0)
    return Splits("colours", part("train", 8, 4, 60), part("val", 4, 4, 60), part("test", 4, 4, 60))


def tiny(**options: Any) -> TrainConfig:
    defaults: dict[str, Any] = {
        "dataset": "folder",
        "method": "none",
        "backbone": "test_resnet",
        "weights": "none",
        "image_size": SIDE,
        "crop_scale": 0.5,
        "head_dim": DIM,
        "epochs": 2,
        "batch_size": 16,
        "per_class": 4,
        "lr": 1e-3,
        "ema": 0.0,
        "device": "cpu",
        "workers": 0,
        "checkpoint_minutes": 0.0,
    }
    parts = {
        "dybgr": {"k": 4, "num_iterations": 2},
        "bgformer": {"heads": 2, "k": 4},
        "batchformer": {"heads": 2},
        "iaa": {"start": 0.0, "update_every": 2, "num_neighbors": 3},
        **options.pop("options", {}),
    }
    return TrainConfig(**{**defaults, **options}, options=parts)


class At(Progress):
    """Does something when the n-th batch is done, of steps and of embeddings."""

    def __init__(self, at: int, act: Callable[[], object]) -> None:
        self.at, self.act, self.count = at, act, 0

    def advance(self, amount: int) -> None:
        self.count += bool(amount)
        if amount and self.count == self.at:
            self.act()


class StopAfter(Progress):
    """Ends the process' training after an epoch, with nothing saved: as a kill does."""

    def __init__(self, epoch: int) -> None:
        self.after = epoch

    def epoch(self, row: dict[str, Any]) -> None:
        if row["epoch"] == self.after:
            raise KeyboardInterrupt


def read_csv(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def assert_same_files(one: Path, other: Path) -> None:
    """Bit for bit, apart from the time it took."""
    for name in ("model.safetensors", "embeddings.safetensors"):
        mine, theirs = load_file(one / name), load_file(other / name)
        assert mine.keys() == theirs.keys()
        different = [key for key, tensor in mine.items() if not torch.equal(tensor, theirs[key])]
        assert different == []
    rows = [[{**row, "seconds": ""} for row in read_csv(folder)] for folder in (one, other)]
    assert rows[0] == rows[1]
