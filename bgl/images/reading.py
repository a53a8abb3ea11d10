"""Image files as RGB tensors, one by one or in batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

#: Files with these endings, in small or capital letters, are images; others are left alone.
IMAGE_SUFFIXES = frozenset(
    {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"}
)

_SAYS = "Expected an image file that can be decoded, but got "


class BrokenImageError(ValueError):
    """An image file that is missing or cannot be decoded; ``path`` is the file."""

    def __init__(self, path: Path | str, reason: str | None = None) -> None:
        if reason is None:  # from a DataLoader's worker: the traceback, which ends in this error
            path, _, reason = str(path).rpartition(_SAYS)[2].strip().partition(": ")
        super().__init__(path, reason)  # both, so that it can be pickled
        self.path = Path(path)
        self.reason = reason

    def __str__(self) -> str:
        return f"{_SAYS}{self.path}: {self.reason}"


def to_rgb(image: Image.Image) -> Tensor:
    """A Pillow image of any mode as a uint8 tensor [3, H, W]: transparency over white, upright."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):  # Pillow would clip 16-bit grey values at 255
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    pixels = np.array(image.convert("RGB"))
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def read_image(path: Path) -> Tensor:
    """The first frame of an image file as an RGB uint8 tensor [3, H, W].

    Grey, palette and CMYK images become RGB, transparent ones are put on white, and the
    orientation noted by a camera is applied.

    Raises:
        BrokenImageError: if the file is missing or cannot be decoded to the end.
    """
    try:
        with Image.open(path) as image:
            return to_rgb(image)
    except FileNotFoundError as error:
        raise BrokenImageError(path, "it does not exist") from error
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, struct.error, ...
        raise BrokenImageError(path, f"{type(error).__name__}: {error}") from error


def read_batches(
    images: Tensor | Sequence[str | Path | Tensor],
    transform: Callable[[Tensor], Tensor],
    batch_size: int,
    threads: int = 1,
) -> Iterator[list[Tensor | BrokenImageError]]:
    """Transformed images in batches, with an error in the place of each that cannot be decoded.

    Threads are enough, as decoders work outside Python's lock. They are a batch ahead of what is
    taken, so that an encoder need not wait; more is never held in memory.

    Args:
        images: Files and uint8 tensors [3, H, W], or a tensor [N, 3, H, W].
        transform: Applied to each, for instance an :func:`eval_transform`.
        batch_size: Images in a batch; the last one may have fewer.
        threads: How many decode.

    Example:
        >>> images = torch.zeros(5, 3, 4, 4, dtype=torch.uint8)
        >>> [len(batch) for batch in read_batches(images, torch.Tensor.float, batch_size=2)]
        [2, 2, 1]
    """

    def read(image: str | Path | Tensor) -> Tensor | BrokenImageError:
        try:
            return transform(image if isinstance(image, Tensor) else read_image(Path(image)))
        except BrokenImageError as error:
            return error

    ahead: list[Future[Tensor | BrokenImageError]] = []
    with ThreadPoolExecutor(threads) as pool:
        for start in range(0, len(images), batch_size):
            batch = ahead
            ahead = [pool.submit(read, image) for image in images[start : start + batch_size]]
            if batch:
                yield [future.result() for future in batch]
        if ahead:
            yield [future.result() for future in ahead]
