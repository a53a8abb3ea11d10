"""Images as people hold them, as RGB tensors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from bgl.images.reading import BrokenImageError, decode_image, read_image, to_rgb

#: A path, the content of a file, a Pillow image, a uint8 array [H, W] or [H, W, 1, 3 or 4], or a
#: uint8 tensor [1 or 3, H, W].
ImageLike = str | Path | bytes | Image.Image | np.ndarray | Tensor


def is_image_like(value: object) -> bool:
    """Return whether :func:`as_image` takes a value, as far as can be said without reading it."""
    if isinstance(value, Tensor):
        return value.dtype == torch.uint8 and value.dim() == 3 and value.size(0) in (1, 3)
    if isinstance(value, np.ndarray):
        plain = value.ndim == 2 or (value.ndim == 3 and value.shape[2] in (1, 3, 4))
        return value.dtype == np.uint8 and plain
    return isinstance(value, str | Path | bytes | Image.Image)


def as_image(value: ImageLike, min_side: int | None = None) -> Tensor:
    """Convert an image to an RGB uint8 tensor [3, H, W], as :func:`bgl.images.read_image` does.

    Args:
        value: The image.
        min_side: Number of pixels that suffices for the shorter side of one that is decoded
            here; None: the whole image.

    Raises:
        BrokenImageError: If a file or its content cannot be decoded.

    Example:
        >>> as_image(np.zeros((4, 6), dtype=np.uint8)).shape
        torch.Size([3, 4, 6])
    """
    if isinstance(value, str | Path):
        return read_image(Path(value), min_side)
    if isinstance(value, bytes):
        return decode_image(value, min_side)
    if isinstance(value, Tensor):
        return value.expand(3, -1, -1)
    if isinstance(value, np.ndarray):
        value = Image.fromarray(value[:, :, 0] if value.shape[2:] == (1,) else value)
    try:
        return to_rgb(value)
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, struct.error, ...
        raise BrokenImageError(repr(value), f"{type(error).__name__}: {error}") from error
