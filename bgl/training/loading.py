"""Training images that depend neither on who loads them nor on what was loaded before."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bgl.datasets import ImageDataset
from bgl.images.loading import Key
from bgl.images.transforms import Crop
from bgl.samplers import BatchSampler


@dataclass(frozen=True)
class SeededCrops:
    """Crops of ``data`` by keys (index, seed): random numbers are drawn from that seed."""

    data: ImageDataset
    crop: Crop

    def __getitem__(self, key: Key) -> Tensor:
        index, seed = key
        if not 0 <= seed < 2**32:  # the generator takes 32 bits: 2**32 + 1 would be 1
            raise ValueError(f"Expected argument `seed` to be in [0, 2**32), got {seed}")
        image = self.data.read(index, self.crop.min_side)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            return self.crop(image)


def seeded_batches(sampler: BatchSampler, seed: int, epoch: int) -> list[list[Key]]:
    """Return the batches of an epoch, with a seed for every image.

    The seed of an image depends on the run's seed, the epoch and the image's place in the
    epoch alone. So a run can resume in the middle of an epoch, with any number of loading
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
