"""Decoding large photographs at a fraction of their size, and only once."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import bgl.images.cache as caching
from bgl.datasets import ImageDataset
from bgl.images import BrokenImageError, eval_transform, read_image, train_transform
from bgl.images.cache import ImageCache
from bgl.images.loading import ImageLoader
from bgl.images.transforms import resized_side
from bgl.training.loading import SeededCrops

MEAN, STD = (0.5,) * 3, (0.5,) * 3


def photo(path: Path, width: int, height: int, **options: Any) -> Path:
    """Waves of many lengths, without noise."""
    x, y = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))
    waves = [np.sin(2 * np.pi * (5 * x * (i + 1) + 3 * y**2 * (3 - i))) for i in range(3)]
    pixels = (np.stack(waves, 2) * 120 + 128).astype(np.uint8)
    Image.fromarray(pixels).save(path, quality=95, **options)
    return path


@pytest.mark.parametrize(
    ("min_side", "shape"),
    [
        (None, (480, 640)),
        (481, (480, 640)),
        (241, (480, 640)),
        (240, (240, 320)),
        (100, (120, 160)),
    ],
)
def test_jpeg_is_decoded_no_smaller_than_it_has_to_be(
    tmp_path: Path, min_side: int | None, shape: tuple[int, int]
) -> None:
    path = photo(tmp_path / "x.jpg", 640, 480)
    found = read_image(path, min_side)
    assert found.shape[1:] == shape
    scaled = Image.fromarray(read_image(path).permute(1, 2, 0).numpy())
    scaled = scaled.resize(shape[::-1], Image.Resampling.BOX)
    difference = found.float() - torch.from_numpy(np.array(scaled)).permute(2, 0, 1).float()
    assert difference.abs().mean() < 2


def test_a_small_decoded_photo_stands_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    path = photo(tmp_path / "x.jpg", 640, 480, exif=exif)
    small, whole = read_image(path, 100), read_image(path)
    assert small.shape == (3, 160, 120)
    assert whole.shape == (3, 640, 480)
    pooled = torch.nn.functional.avg_pool2d(whole.float(), 4)
    assert (small.float() - pooled).abs().mean() < 2


def test_other_formats_are_decoded_whole(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    Image.new("RGB", (640, 480)).save(path)
    assert read_image(path, 10).shape == (3, 480, 640)


def test_no_training_crop_is_enlarged_because_a_photo_was_decoded_small() -> None:
    crop = train_transform(224, MEAN, STD, crop_scale=(0.2, 1.0)).crop
    for width, height in ((1.0, 1.0), (1.5, 1.0), (0.7, 1.0)):
        scale = crop.min_side / min(width, height)
        numbers = torch.rand(2000, 40).tolist()
        boxes = torch.tensor(
            [crop._box(round(height * scale), round(width * scale), row) for row in numbers]
        )
        assert boxes[:, 2:].min() >= 223


def test_evaluation_hardly_sees_that_a_photo_was_decoded_small(tmp_path: Path) -> None:
    path = photo(tmp_path / "x.jpg", 1600, 1200)
    transform = eval_transform(64, MEAN, STD)
    small = read_image(path, transform.crop.min_side)
    assert small.shape[1] < 300
    difference = transform.crop(small).float() - transform.crop(read_image(path)).float()
    assert difference.abs().mean() < 1


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    sizes = [(60, 40), (30, 20), (50, 70), (33, 32)]
    return [photo(tmp_path / f"{i}.jpg", *size) for i, size in enumerate(sizes)]


def of(files: list[Path]) -> ImageDataset:
    return ImageDataset(files, torch.zeros(len(files)).long(), ["x"])


def test_cached_files_are_decoded_once_and_evaluated_bit_for_bit(
    files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, crop = of(files), eval_transform(28, MEAN, STD).crop
    cached = plain.with_cache(ImageCache(tmp_path / "cache", resized_side(28, None)))
    keys = [[(i, 0) for i in range(4)]]

    def load(data: ImageDataset, workers: int = 0) -> Tensor:
        source = SeededCrops(data, crop)
        with ImageLoader(source, image_size=28, batch_size=4, workers=workers) as loader:
            return next(loader.load(keys))[0].clone()

    expected = load(plain)
    assert torch.equal(load(cached, workers=2), expected)
    monkeypatch.setattr(caching, "read_image", None)
    assert torch.equal(load(cached), expected)
    assert torch.equal(load(cached.subset([3, 2, 1, 0])), expected.flip(0))
    assert [tuple(cached.read(i, 28).shape[1:]) for i in range(4)] == [
        (32, 48),
        (20, 30),
        (44, 32),
        (32, 33),
    ]
    assert cached.read(0).shape == (3, 40, 60)  # whoever wants the whole image gets it
    assert not list((tmp_path / "cache").rglob("*.bgl-tmp"))


def test_a_changed_file_is_decoded_again_and_a_damaged_copy_too(
    files: list[Path], tmp_path: Path
) -> None:
    cache = ImageCache(tmp_path / "cache", 32)
    first = cache.read(files[0])
    Image.new("RGB", (60, 40), (200, 10, 10)).save(files[0])
    second = cache.read(files[0])
    assert not torch.equal(first, second)
    for stored in (path for path in (tmp_path / "cache").rglob("*") if path.is_file()):
        os.truncate(stored, 100)  # as a disk that lost power may leave it
    assert torch.equal(cache.read(files[0]), second)


def test_a_broken_file_is_named_and_not_cached(tmp_path: Path) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    cache = ImageCache(tmp_path / "cache", 32)
    for name, reason in (("broken.jpg", "Unidentified"), ("gone.jpg", "does not exist")):
        with pytest.raises(BrokenImageError, match=f"{name}: .*{reason}"):
            cache.read(tmp_path / name)
    assert not list((tmp_path / "cache").rglob("*"))
