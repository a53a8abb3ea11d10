"""Training images that depend neither on who loads them nor on what was loaded before."""

from __future__ import annotations

import multiprocessing
import re
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from bgl.datasets import ImageDataset
from bgl.samplers import ClassBalancedSampler

Key = tuple[int, int]  # the index of an image, and the seed of its augmentation
TIMEOUT = 600.0  # seconds to wait for a batch before a worker counts as stuck


class SeededImages(Dataset[Tensor]):
    """``data`` by keys (index, seed): the transform draws its random numbers from that seed."""

    def __init__(self, data: ImageDataset) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, key: Key) -> Tensor:
        index, seed = key
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            return self.data[index][0]


def deal(sampler: ClassBalancedSampler, epoch: int) -> list[list[Key]]:
    """The batches of an epoch.

    The seed of an image depends on the sampler's seed, the epoch and the image's place in the
    epoch alone. So a training can go on in the middle of an epoch, with any number of loading
    processes, and each of several processes can load its share of a batch.

    Example:
        >>> sampler = ClassBalancedSampler([0, 0, 1, 1], batch_size=4, per_class=2)
        >>> [sorted(index for index, _ in batch) for batch in deal(sampler, epoch=0)]
        [[0, 1, 2, 3]]
    """
    sampler.set_epoch(epoch)
    random = np.random.default_rng([sampler.seed, epoch, 1])
    return [
        list(zip(batch, random.integers(2**32, size=len(batch)).tolist(), strict=True))
        for batch in sampler
    ]


def train_loader(
    data: ImageDataset, batches: list[list[Key]], workers: int, pin_memory: bool = False
) -> DataLoader[Tensor]:
    """Batches of images [N, 3, H, W], loaded without reading the global random generators."""
    return DataLoader(
        SeededImages(data),
        batch_sampler=batches,
        num_workers=workers,
        pin_memory=pin_memory,
        timeout=TIMEOUT if workers else 0.0,
        generator=worker_seed(batches[0][0][1] if batches else 0),
    )


def worker_seed(seed: int) -> torch.Generator:
    """What a DataLoader draws the seed of its first worker from; the others count up from it."""
    return torch.Generator().manual_seed(seed)


def num_workers(workers: int, data: ImageDataset) -> int:
    """Loading processes: as many as asked for; for -1, none for images in memory."""
    if workers >= 0:
        return workers
    return 0 if isinstance(data.images, Tensor) else torch.get_num_threads()


@contextmanager
def dead_workers_named() -> Iterator[None]:
    """Turn what PyTorch says of a lost loading process into an error that says what to do.

    Raises:
        ChildProcessError: If a loading process was killed, or is stuck.
    """
    others = set(multiprocessing.active_children())
    try:
        yield
    except RuntimeError as error:
        if not re.match(r"DataLoader (worker \(pid|timed out)", str(error)):
            raise
        end_processes(set(multiprocessing.active_children()) - others)
        reason = str(error).split(". ")[0].rstrip(". ")
        raise ChildProcessError(
            f"Lost a process that loads images: {reason}. If the system ran out of memory, use "
            "fewer --workers"
        ) from error


def end_processes(children: set[Any]) -> None:
    """Kill them: when Python ends it would wait for one that is stuck, for ever."""
    main = threading.current_thread() is threading.main_thread()
    # PyTorch's handler would raise once more for each of them
    handler = signal.signal(signal.SIGCHLD, signal.SIG_DFL) if main else None
    for child in children:
        child.kill()
        child.join()
    if main:
        signal.signal(signal.SIGCHLD, handler)
