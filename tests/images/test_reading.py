"""Reading image files of every mode, one by one and in batches."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import bgl.datasets
import bgl.images
from bgl.datasets import ImageDataset
from bgl.images import BrokenImageError, read_image
from bgl.images.loading import load_batches


def save(image: Image.Image, path: Path, **options: object) -> Path:
    image.save(path, **options)
    return path


def test_modes_are_read_as_rgb(tmp_path: Path) -> None:
    red = Image.new("RGB", (6, 4), (255, 0, 0))
    clear = Image.new("RGBA", (6, 4), (0, 0, 255, 0))
    palette = Image.new("P", (6, 4), 0)
    palette.putpalette([0, 255, 0, 0, 0, 0])
    holes = Image.new("P", (6, 4), 1)
    holes.putpalette([0, 255, 0, 0, 0, 0])
    deep = Image.fromarray(np.full((4, 6), 100 * 256, dtype=np.uint16))
    cases = {
        save(red, tmp_path / "rgb.png"): (255, 0, 0),
        save(Image.new("L", (6, 4), 90), tmp_path / "grey.jpg"): (90, 90, 90),
        save(Image.new("1", (6, 4), 1), tmp_path / "bits.png"): (255, 255, 255),
        save(Image.new("LA", (6, 4), (0, 0)), tmp_path / "la.png"): (255, 255, 255),
        save(clear, tmp_path / "rgba.png"): (255, 255, 255),
        save(Image.new("RGBA", (6, 4), (0, 0, 0, 128)), tmp_path / "half.png"): (127, 127, 127),
        save(palette, tmp_path / "palette.png"): (0, 255, 0),
        save(holes, tmp_path / "holes.png", transparency=1): (255, 255, 255),
        save(deep, tmp_path / "deep.png"): (100, 100, 100),
        save(red.convert("CMYK"), tmp_path / "cmyk.jpg", quality=100): (255, 0, 0),
        save(red, tmp_path / "rgb.webp", lossless=True): (255, 0, 0),
    }
    for path, colour in cases.items():
        image = read_image(path)
        assert image.dtype == torch.uint8, path
        assert image.shape == (3, 4, 6), path
        distance = image.int() - torch.tensor(colour)[:, None, None]
        assert distance.abs().max() <= 2, path


def test_camera_orientation_is_applied(tmp_path: Path) -> None:
    image = Image.new("RGB", (6, 4), "white")
    image.putpixel((0, 0), (255, 0, 0))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    pixels = read_image(save(image, tmp_path / "turned.png", exif=exif))
    assert pixels.shape == (3, 6, 4)
    assert pixels[:, 0, -1].tolist() == [255, 0, 0]


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
def test_broken_file_is_named(tmp_path: Path, suffix: str) -> None:
    noise = Image.effect_noise((64, 64), 80).convert("RGB")
    path = save(noise, tmp_path / f"cut.{suffix}")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(BrokenImageError, match=f"cut.{suffix}") as caught:
        ImageDataset([path], torch.tensor([0]), ["x"])[0]
    assert isinstance(caught.value, ValueError)
    assert caught.value.path == path
    # A DataLoader's worker sends its error to the main process as a pickle.
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_missing_and_empty_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "empty.jpg").touch()
    for name, reason in (("empty.jpg", "Unidentified"), ("missing.jpg", "it does not exist")):
        with pytest.raises(BrokenImageError, match=f"{name}: {reason}"):
            read_image(tmp_path / name)


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_hold_every_image_or_its_error_in_order(tmp_path: Path, workers: int) -> None:
    images = torch.randint(0, 256, (5, 3, 6, 4), dtype=torch.uint8)
    paths = [
        save(Image.fromarray(image.permute(1, 2, 0).numpy()), tmp_path / f"{i}.png")
        for i, image in enumerate(images)
    ]
    paths[3].write_bytes(b"no image")
    data = ImageDataset(paths, torch.zeros(5).long(), ["x"])
    before = torch.get_rng_state()
    batches = list(load_batches(Files(data), [[4, 3], [1], [3], [0, 1, 2]], workers))
    assert torch.equal(torch.get_rng_state(), before)
    for (found, broken), rows in zip(batches, [[4], [1], [], [0, 1, 2]], strict=True):
        assert torch.equal(found, images[rows]) or len(found) == len(rows) == 0
        assert all(error.path == paths[3] for error in broken.values())
    assert [list(broken) for _, broken in batches] == [[1], [], [0], []]


class Files:
    def __init__(self, data: ImageDataset) -> None:
        self.data = data

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.data.read(index)


def test_the_datasets_offer_the_same_names() -> None:
    for name in bgl.images.__all__:
        assert getattr(bgl.images, name) is getattr(bgl.datasets, name)
