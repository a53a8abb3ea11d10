"""What is done to an image on its way into the encoder, in training and in evaluation."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2

from bgl._checks import check_int, check_real

Transform = Callable[[Tensor], Tensor]

#: Longer side over shorter side from which on an image loses its ends before it is resized. The
#: crop would drop them anyway, but first an image of 20,000 × 1 pixels would take gigabytes.
LONGEST = 32


def train_transform(
    image_size: int,
    mean: Sequence[float],
    std: Sequence[float],
    crop_scale: tuple[float, float] = (0.2, 1.0),
    flip: float = 0.5,
) -> Transform:
    """Crop at random, resize with bicubic interpolation, flip at random, and normalise.

    Takes a uint8 tensor [3, H, W], gives a float32 tensor [3, image_size, image_size].

    Args:
        image_size: Side of the result in pixels.
        mean: What is subtracted from each channel, for values in [0, 1].
        std: What each channel is then divided by.
        crop_scale: Smallest and largest share of the image's area in a crop.
        flip: Probability of a flip from left to right.

    Raises:
        ValueError: If an argument is out of its range.
    """
    check_int(image_size, "image_size", 2)  # torch cannot resize to a single pixel
    check_real(flip, "flip", 0.0, 1.0)
    if not isinstance(crop_scale, (tuple, list)) or len(crop_scale) != 2:
        raise ValueError(f"Expected argument `crop_scale` to be two numbers, got {crop_scale!r}")
    smallest, largest = crop_scale
    check_real(smallest, "crop_scale[0]", 0.0, 1.0, exclusive=True)
    check_real(largest, "crop_scale[1]", smallest, 1.0)
    return v2.Compose(
        [
            v2.RandomResizedCrop(
                image_size, crop_scale, interpolation=InterpolationMode.BICUBIC, antialias=True
            ),
            v2.RandomHorizontalFlip(flip),
            *_normalise(mean, std),
        ]
    )


def eval_transform(
    image_size: int, mean: Sequence[float], std: Sequence[float], resize: int | None = None
) -> Transform:
    """Resize with bicubic interpolation, cut out the centre, and normalise.

    Takes a uint8 tensor [3, H, W], gives a float32 tensor [3, image_size, image_size].

    Args:
        image_size: Side of the result in pixels.
        mean: What is subtracted from each channel, for values in [0, 1].
        std: What each channel is then divided by.
        resize: Length of the shorter side before the crop. By default 8/7 of ``image_size`` (256
            for 224), as usual for photos, and ``image_size`` itself for images no larger than
            that, which have no margin to spare.

    Raises:
        ValueError: If an argument is out of its range.
    """
    check_int(image_size, "image_size", 2)  # torch cannot resize to a single pixel
    if resize is not None:
        check_int(resize, "resize", image_size)
    return v2.Compose([_ResizeAndCrop(image_size, resize), *_normalise(mean, std)])


class _ResizeAndCrop(torch.nn.Module):
    """Resize the shorter side as ``eval_transform`` says, then cut out the centre."""

    def __init__(self, image_size: int, resize: int | None) -> None:
        super().__init__()
        self.image_size = image_size
        self.resize = resize

    def forward(self, image: Tensor) -> Tensor:
        """Resize and crop an image [3, H, W]."""
        shorter = min(image.shape[-2:])
        if max(image.shape[-2:]) > LONGEST * shorter:
            height, width = (min(side, LONGEST * shorter) for side in image.shape[-2:])
            image = v2.functional.center_crop(image, [height, width])
        side = self.resize
        if side is None:
            fits = shorter <= self.image_size
            side = self.image_size if fits else self.image_size * 256 // 224
        if shorter != side:
            image = v2.functional.resize(
                image, [side], interpolation=InterpolationMode.BICUBIC, antialias=True
            )
        return v2.functional.center_crop(image, [self.image_size])


def _normalise(mean: Sequence[float], std: Sequence[float]) -> list[torch.nn.Module]:
    for name, values in (("mean", mean), ("std", std)):
        if len(values) != 3:
            raise ValueError(f"Expected argument `{name}` to have 3 values, but got {values!r}")
    for value in std:
        check_real(value, "std", 0.0, exclusive=True)
    return [v2.ToDtype(torch.float32, scale=True), v2.Normalize(list(mean), list(std))]
