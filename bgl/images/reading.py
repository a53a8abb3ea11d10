"""Image files as RGB tensors."""

from __future__ import annotations

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
