"""Training images that depend neither on who loads them nor on what was loaded before."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from bgl.datasets import ImageDataset
from bgl.images.loading import load_batches
from bgl.samplers import BatchSampler

Key = tuple[int, int]  # the index of an image, and the seed of its augmentation


class SeededImages:
    """``data`` by keys (index, seed): the transform draws its random numbers from that seed."""

    def __init__(self, data: ImageDataset) -> None:
        self.data = data

    def __getitem__(self, key: Key) -> Tensor:
        index, seed = key
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            return self.data[index][0]


def seeded_batches(sampler: BatchSampler, seed: int, epoch: int) -> list[list[Key]]:
    """Return the batches of an epoch, with a seed for every image.

    The seed of an image depends on the run's seed, the epoch and the image's place in the
    epoch alone. So a run can go on in the middle of an epoch, with any number of loading
    processes, and each of several processes can load its share of a batch.

    Example:
        >>> from bgl.samplers import ClassBalancedSampler
        >>> sampler = ClassBalancedSampler([0, 0, 1, 1], batch_size=4, per_class=2)
        >>> [sorted(i for i, _ in batch) for batch in seeded_batches(sampler, seed=0, epoch=0)]
        [[0, 1, 2, 3]]
    """
    sampler.set_epoch(epoch)
    random = np.random.default_rng([seed, epoch, 1])
    return [
        list(zip(batch, random.integers(2**32, size=len(batch)).tolist(), strict=True))
        for batch in sampler
    ]


def load_training_images(
    data: ImageDataset, batches: list[list[Key]], workers: int, pin_memory: bool = False
) -> Iterator[Tensor]:
    """Load batches of augmented images [N, 3, H, W].

    Raises:
        BrokenImageError: If an image cannot be read.
        ChildProcessError: If a loading process was lost.
    """
    seed = batches[0][0][1] if batches else 0
    for images, broken in load_batches(
        SeededImages(data), batches, workers, pin_memory=pin_memory, seed=seed
    ):
        for error in broken.values():
            raise error
        yield images
