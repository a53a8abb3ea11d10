"""Training images from JPEG files: as a run loads them, and as torchvision's documentation does."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import InterpolationMode, v2

from benchmarks.speed.case import Peer, Scale, Sides, Values, Work
from bgl.datasets import ImageDataset, load_dataset
from bgl.images import ImageCache, train_transform
from bgl.images.loading import ImageLoader
from bgl.images.transforms import resized_side
from bgl.training.loading import SeededCrops

PEER = "`v2` in a `DataLoader`"
ZERO, ONE = (0.0,) * 3, (1.0,) * 3
NOTE = "random crops: means of pixels are compared"


def photos(scale: Scale) -> Sides:
    """Photographs of the size that the papers' datasets have."""
    return sides(scale(500, 100), scale(375, 75), scale(32, 8), scale(224, 32), cached=True)


def large_photos(scale: Scale) -> Sides:
    """Photographs of 12 megapixels, as phones take them."""
    return sides(scale(4000, 800), scale(3000, 600), 2, scale(224, 32), cached=False)


def sides(width: int, height: int, count: int, size: int, cached: bool) -> Sides:
    """Load a batch of augmented images, float32, without other processes."""
    files = write_photos(width, height, count)
    data = ImageDataset(files, torch.zeros(count).long(), ["photos"])
    kept = data.with_cache(ImageCache(files[0].parent / "cache", resized_side(size, None)))
    ours = {"bgl": loading(data, size)}
    peers = [Peer(PEER, plain(files, size), target=1.0, tolerance=0.1, note=NOTE)]
    if cached:
        ours["bgl, cached"] = loading(kept, size)
        name = f"{PEER}, bgl with a filled cache"
        peers.append(Peer(name, plain(files, size), "bgl, cached", tolerance=0.1, note=NOTE))

    def check(run: Work) -> tuple[Values, Values]:
        against = next(peer.against for peer in peers if peer.run is run)
        return {"mean": mean(ours[against])}, {"mean": mean(run)}

    return Sides(ours, peers, check=check)


def mean(run: Work) -> Tensor:
    """Average all pixels of some batches."""
    return torch.stack([run()["images"].mean() for _ in range(4)]).mean()


def loading(data: ImageDataset, size: int) -> Work:
    """Load as a run does."""
    transform = train_transform(size, ZERO, ONE)
    loader = ImageLoader(SeededCrops(data, transform.crop), image_size=size, batch_size=len(data))

    def work() -> Values:
        seeds = torch.randint(2**32, (len(data),)).tolist()
        images, _ = next(loader.load([list(enumerate(seeds))]))
        return {"images": transform.normalize(images)}

    return work


def plain(files: list[Path], size: int) -> Work:
    """Load as torchvision's documentation shows."""
    transform = v2.Compose(
        [
            v2.ToImage(),
            v2.RandomResizedCrop(size, (0.2, 1.0), interpolation=InterpolationMode.BICUBIC),
            v2.RandomHorizontalFlip(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(ZERO, ONE),
        ]
    )

    class Photos(Dataset[Any]):
        def __len__(self) -> int:
            return len(files)

        def __getitem__(self, index: int) -> Any:
            with Image.open(files[index]) as image:
                return transform(image.convert("RGB"))

    loader = DataLoader(Photos(), batch_size=len(files))
    return lambda: {"images": next(iter(loader)).as_subclass(Tensor)}


@cache
def write_photos(width: int, height: int, count: int) -> list[Path]:
    """Write JPEG files that compress like photographs: enlarged emoji with noise."""
    folder = Path(_temporary().name) / f"{width}x{height}"
    folder.mkdir(exist_ok=True)
    generator = torch.Generator().manual_seed(0)
    images = load_dataset("emoji").test.images
    files = [folder / f"{number}.jpg" for number in range(count)]
    for file, drawing in zip(files, images, strict=False):
        if file.exists():  # a process that was forked has written it
            continue
        image = v2.functional.resize(drawing, [height, width]).float()
        image += 4 * torch.randn(image.shape, generator=generator)
        coarse = 12 * torch.randn(3, height // 4, width // 4, generator=generator)
        image += v2.functional.resize(coarse, [height, width])
        pixels = image.clamp(0, 255).byte().permute(1, 2, 0).numpy()
        Image.fromarray(pixels).save(file, quality=90)
    return files


@cache
def _temporary() -> tempfile.TemporaryDirectory[str]:
    """Make a folder that lasts as long as this program."""
    return tempfile.TemporaryDirectory(prefix="bgl-speed-")
