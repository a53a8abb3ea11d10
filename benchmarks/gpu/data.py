"""Training from image files: what the loader delivers, and what a GPU gets of it."""

from __future__ import annotations

import itertools
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from benchmarks.gpu.case import Part, Scale, Target
from benchmarks.gpu.step import vit
from bgl.datasets import ImageDataset, Splits, load_dataset
from bgl.training import Progress, TrainConfig, train

SHARED_MEMORY = Path("/dev/shm")


class Clock(Progress):
    """Notes when the steps of every epoch end, when epochs end, and how full shared memory is."""

    def __init__(self) -> None:
        self.steps: list[list[float]] = []
        self.ends: list[float] = []
        self.shared_gb = 0.0
        self._training = False

    def start(self, what: str, total: int) -> None:
        self._training = what.startswith("epoch")
        if self._training:
            self.steps.append([])

    def advance(self, amount: int) -> None:
        if self._training and amount:
            self.steps[-1].append(time.perf_counter())
            if SHARED_MEMORY.exists():
                self.shared_gb = max(self.shared_gb, shutil.disk_usage(SHARED_MEMORY).used / 1e9)

    def epoch(self, row: dict[str, object]) -> None:
        self.ends.append(time.perf_counter())

    def rate(self, batch_size: int) -> float:
        """Images a second in the last epoch, between its first and its last step."""
        steps = self.steps[-1]
        return batch_size * (len(steps) - 1) / (steps[-1] - steps[0])

    def pause(self) -> float:
        """Seconds from the end of the last but one epoch to the next one's first step."""
        steps = self.steps[-1]
        step = statistics.median(b - a for a, b in itertools.pairwise(steps))
        return steps[0] - self.ends[-2] - step


def write_photos(folder: Path, scale: Scale) -> Splits:
    """Write JPEG files of a photograph's size: the packaged emoji, enlarged, under noise."""
    emoji = load_dataset("emoji").train
    width, height = scale(500, 40), scale(375, 30)
    grain = np.random.default_rng(0).integers(-12, 13, (height, width, 3), dtype=np.int16)

    def write(number: int, copies: int) -> list[Path]:
        source = Image.fromarray(emoji.read(number).permute(1, 2, 0).numpy())
        pixels = np.asarray(source.resize((width, height), Image.Resampling.BICUBIC))
        paths = [folder / f"{number}_{i}.jpg" for i in range(copies)]
        noisy = (pixels + grain).clip(0, 255).astype(np.uint8)
        Image.fromarray(noisy).save(paths[0], quality=90)
        for path in paths[1:]:
            shutil.copyfile(paths[0], path)
        return paths

    def part(first: int, classes: int, copies: int) -> ImageDataset:
        numbers = range(first, first + classes)
        with ThreadPoolExecutor() as pool:
            files = list(pool.map(lambda number: write(number, copies), numbers))
        labels = torch.arange(classes).repeat_interleave(copies)
        return ImageDataset([f for fs in files for f in fs], labels, [str(n) for n in numbers])

    classes = scale(80, 6)
    train, test = part(0, classes, scale(25, 4)), part(classes, 4, 4)
    return Splits("folder", train, None, test)


def train_from_files(scale: Scale, config: TrainConfig, cached: bool = False) -> Clock:
    """Train on photographs for two epochs; ``cached`` keeps them decoded."""
    config = replace(
        config,
        dataset="folder",
        protocol="paper",
        epochs=2,
        eval_every=2,
        batches_per_epoch=scale(12, 3),
        device=scale.device.type,
    )
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        photos = Path(folder, "photos")
        photos.mkdir()
        if cached:
            config = replace(config, cache=str(Path(folder, "cache")))
        train(config, write_photos(photos, scale), Path(folder, "run"), clock)
    return clock


def loader(scale: Scale) -> Iterator[float]:
    """An encoder that costs next to nothing, so that the images are waited for."""
    config = replace(vit(scale), backbone="test_resnet")
    clock = train_from_files(scale, config)
    yield clock.rate(config.batch_size) / len(os.sched_getaffinity(0))
    yield clock.pause()
    yield clock.shared_gb


def cached_loader(scale: Scale) -> Iterator[float]:
    """The same, from images that were decoded in the first epoch."""
    config = replace(vit(scale), backbone="test_resnet")
    clock = train_from_files(scale, config, cached=True)
    yield clock.rate(config.batch_size) / len(os.sched_getaffinity(0))


def training(scale: Scale) -> Iterator[float]:
    """The encoder of the step's case."""
    config = vit(scale)
    yield train_from_files(scale, config).rate(config.batch_size)


DATA = (
    Part(
        loader,
        (
            Target("photographs, 500 × 375, an encoder of no cost", "≥", 350, "images/s and core"),
            Target("from the end of an epoch to the next step", "≤", 0.3, "s"),
            Target("shared memory", "≤", 2, "GB"),
        ),
    ),
    Part(
        cached_loader,
        (Target("the same from a cache", "≥", 1500, "images/s and core"),),
    ),
    Part(
        training,
        (Target("photographs, ViT-S/16: 85% of the step's target", "≥", 2125, "images/s"),),
    ),
)
