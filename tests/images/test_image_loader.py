"""Batches of images by key: whoever loads them, in any order of their completion."""

from __future__ import annotations

import multiprocessing
import os
import time
from pathlib import Path

import pytest
import torch
from helpers import write_pngs

from bgl.datasets import ImageDataset
from bgl.images import eval_transform, train_transform
from bgl.images.loading import AHEAD, PIECE, ImageLoader, Key
from bgl.images.transforms import Crop
from bgl.training.loading import SeededCrops


class Whole:
    """Images as they are, of one size; the second and later ones after a moment."""

    def __init__(self, data: ImageDataset, slow: bool = False) -> None:
        self.data, self.slow = data, slow

    def __getitem__(self, key: Key) -> torch.Tensor:
        if self.slow:
            time.sleep(0.01 * (key[0] % 3))
        return self.data.read(key[0])


class Process:
    """Every "image" holds the process that loads it."""

    def __getitem__(self, key: Key) -> torch.Tensor:
        if key[0] < 0:
            raise KeyError(key)
        time.sleep(0.01)
        return torch.tensor(list(os.getpid().to_bytes(3, "little")), dtype=torch.uint8)[
            :, None, None
        ]


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_hold_every_image_or_its_error_in_order(tmp_path: Path, workers: int) -> None:
    images = torch.randint(0, 256, (5, 3, 6, 6), dtype=torch.uint8)
    paths = write_pngs(tmp_path, images)
    paths[3].write_bytes(b"no image")
    data = ImageDataset(paths, torch.zeros(5).long(), ["x"])
    before = torch.get_rng_state()
    wanted = [[4, 3], [1], [3], [0, 1, 2], [2]]
    with ImageLoader(Whole(data), image_size=6, batch_size=3, workers=workers) as loader:
        for _ in range(2):  # a second epoch
            found = loader.load([[(i, 0) for i in rows] for rows in wanted])
            for rows, (x, broken) in zip(wanted, found, strict=True):
                good = [i for i in rows if i != 3]
                assert torch.equal(x, images[good])
                assert x.is_contiguous(memory_format=torch.channels_last)
                assert {rows[place]: e.path for place, e in broken.items()} == (
                    {3: paths[3]} if 3 in rows else {}
                )
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("workers", [1, 3])
def test_many_batches_of_slow_and_fast_images_keep_their_places(workers: int) -> None:
    images = torch.randint(0, 256, (40, 3, 2, 2), dtype=torch.uint8)
    data = ImageDataset(images, torch.zeros(40).long(), ["x"])
    batches = [torch.randperm(40)[: 3 + 4 * i % 37].tolist() for i in range(3 * AHEAD)]
    with ImageLoader(Whole(data, True), image_size=2, batch_size=40, workers=workers) as loader:
        found = [x.clone() for x, _ in loader.load([[(i, 0) for i in rows] for rows in batches])]
    for rows, x in zip(batches, found, strict=True):
        assert torch.equal(x, images[rows])


def test_processes_live_from_epoch_to_epoch_and_share_a_batch() -> None:
    def processes() -> set[int]:
        bytes_ = next(iter(loader.load([[(0, 0)] * (4 * PIECE)])))[0].flatten(1).tolist()
        return {int.from_bytes(bytes(row), "little") for row in bytes_}

    before = set(multiprocessing.active_children())
    with ImageLoader(Process(), image_size=1, batch_size=4 * PIECE, workers=2) as loader:
        first = list(loader.load([[(0, 0)] * (4 * PIECE)]))
        children = {child.pid for child in set(multiprocessing.active_children()) - before}
        assert len(first) == 1
        assert len(children) == 2
        rows = [x.flatten(1) for x, _ in loader.load([[(0, 0)] * (4 * PIECE)] * 2)]
        found = {int.from_bytes(bytes(row), "little") for row in torch.cat(rows).tolist()}
        assert found == {pid for pid in children if pid is not None and pid < 2**24}
    assert set(multiprocessing.active_children()) <= before


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_in_a_process_is_raised_here_and_the_next_epoch_loads(workers: int) -> None:
    with ImageLoader(Process(), image_size=1, batch_size=2, workers=workers) as loader:
        with pytest.raises(KeyError, match="-1"):
            list(loader.load([[(0, 0)], [(-1, 0)], [(0, 0)]]))
        assert [len(x) for x, _ in loader.load([[(0, 0)] * 2])] == [2]


def test_what_was_loaded_for_nobody_is_not_taken_for_the_next_batch() -> None:
    images = torch.arange(20, dtype=torch.uint8).view(20, 1, 1, 1).expand(20, 3, 2, 2)
    data = ImageDataset(images, torch.zeros(20).long(), ["x"])
    with ImageLoader(Whole(data, True), image_size=2, batch_size=4, workers=2) as loader:
        for _ in loader.load([[(i, 0) for i in range(4)]] * 8):
            break
        ((x, _),) = loader.load([[(i, 0) for i in range(9, 13)]])
        assert x[:, 0, 0, 0].tolist() == [9, 10, 11, 12]


MEAN, STD = (0.5, 0.4, 0.3), (0.5, 0.25, 0.2)


@pytest.mark.parametrize(
    "crop",
    [train_transform(32, MEAN, STD).crop, eval_transform(32, MEAN, STD).crop],
    ids=["training", "evaluation"],
)
def test_the_number_of_processes_changes_no_bit(crop: Crop) -> None:
    images = torch.randint(0, 256, (30, 3, 50, 40), dtype=torch.uint8)
    data = ImageDataset(images, torch.zeros(30).long(), ["x"])
    batches = [[(i, 7 * i + epoch) for i in range(30)] for epoch in range(2)]

    def load(workers: int) -> torch.Tensor:
        source = SeededCrops(data, crop)
        with ImageLoader(source, image_size=32, batch_size=30, workers=workers) as loader:
            return torch.cat([x.clone() for x, _ in loader.load(batches)])

    expected = load(0)
    assert expected.dtype == torch.uint8
    assert torch.equal(load(1), expected)
    assert torch.equal(load(3), expected)
