"""What is done to an image on its way into the encoder, in training and in evaluation."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2

from bgl._checks import check_int, check_real

Transform = Callable[[Tensor], Tensor]

#: Longer side over shorter side from which on an image loses its ends before it is resized. The
#: crop would drop them anyway, but first an image of 20,000 × 1 pixels would take gigabytes.
LONGEST = 32
RATIO = (3 / 4, 4 / 3)  # width over height of training crops, as usual
ATTEMPTS = 10  # to find a crop inside a long image, before its middle is taken


class Crop(Protocol):
    """Cuts uint8 images of one size out of images of any size.

    Attributes:
        image_size: Side of the result in pixels.
        min_side: Shorter side that an image of more pixels may be decoded at.
    """

    image_size: int
    min_side: int

    def __call__(self, image: Tensor, /) -> Tensor:
        """Turn uint8 [3, H, W] into uint8 [3, image_size, image_size]."""


@dataclass(frozen=True)
class ImageTransform:
    """What is done to an image, in two halves.

    The first changes its pixels, where it is decoded; images travel as bytes. The second
    normalises whole batches, where the model is. Called, both are done.

    Attributes:
        crop: Takes a uint8 image of any size, gives one of ``image_size``.
        normalize: Takes uint8 images [..., 3, H, W], gives float32.
    """

    crop: Crop
    normalize: Normalize

    def __call__(self, image: Tensor) -> Tensor:
        """Prepare a uint8 image [3, H, W] for the model."""
        return self.normalize(self.crop(image))


def train_transform(
    image_size: int,
    mean: Sequence[float],
    std: Sequence[float],
    crop_scale: tuple[float, float] = (0.2, 1.0),
    flip: float = 0.5,
) -> ImageTransform:
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
    return ImageTransform(_RandomCrop(image_size, crop_scale, flip), Normalize(mean, std))


def eval_transform(
    image_size: int, mean: Sequence[float], std: Sequence[float], resize: int | None = None
) -> ImageTransform:
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
    return ImageTransform(_CentreCrop(image_size, resize), Normalize(mean, std))


def resized_side(image_size: int, resize: int | None) -> int:
    """Return the shorter side that a photo gets before its centre is cut out."""
    return image_size * 256 // 224 if resize is None else resize


class Normalize:
    """Scales uint8 images [..., 3, H, W] to [0, 1] and normalises them, on their device.

    Args:
        mean: What is subtracted from each channel.
        std: What each channel is then divided by.

    Raises:
        ValueError: If these are not three numbers, or a ``std`` is not positive.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        for name, values in (("mean", mean), ("std", std)):
            if len(values) != 3:
                raise ValueError(f"Expected argument `{name}` to have 3 values, but got {values!r}")
        for value in std:
            check_real(value, "std", 0.0, exclusive=True)
        self.mean, self.std = (torch.tensor(values)[:, None, None] for values in (mean, std))

    def __call__(self, images: Tensor) -> Tensor:
        """Normalise without waiting for the device."""
        mean, std = (x.to(images.device, non_blocking=True) for x in (self.mean, self.std))
        return images.float().mul_(1 / 255).sub_(mean).div_(std)


class _RandomCrop:
    """Crop, resize and flip at random, as ``train_transform`` says."""

    def __init__(self, image_size: int, scale: tuple[float, float], flip: float) -> None:
        self.image_size, self.scale, self.flip = image_size, scale, flip
        # no side of the smallest crop is then shorter than image_size
        self.min_side = math.ceil(image_size / math.sqrt(scale[0] * RATIO[0]))

    def __call__(self, image: Tensor) -> Tensor:
        flipped, *numbers = torch.rand(1 + 4 * ATTEMPTS).tolist()  # at once; a draw takes its time
        height, width = image.shape[1:]
        top, left, height, width = self._box(height, width, numbers)
        image = image[:, top : top + height, left : left + width]
        image = resize(image, [self.image_size, self.image_size])
        return image.flip(-1) if flipped < self.flip else image

    def _box(self, height: int, width: int, numbers: list[float]) -> tuple[int, int, int, int]:
        """Draw a box as torchvision's ``RandomResizedCrop``: share, shape and place uniform."""
        smallest, largest = self.scale
        low, high = map(math.log, RATIO)
        for share, shape, top, left in zip(*[iter(numbers)] * 4, strict=True):
            area = height * width * (smallest + share * (largest - smallest))
            ratio = math.exp(low + shape * (high - low))
            w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < w <= width and 0 < h <= height:
                return int(top * (height - h + 1)), int(left * (width - w + 1)), h, w
        ratio = min(max(width / height, RATIO[0]), RATIO[1])  # the middle, as far as it may go
        h, w = min(height, round(width / ratio)), min(width, round(height * ratio))
        return (height - h) // 2, (width - w) // 2, h, w


class _CentreCrop:
    """Resize the shorter side as ``eval_transform`` says, then cut out the centre."""

    def __init__(self, image_size: int, resize: int | None) -> None:
        self.image_size, self.resize = image_size, resize
        # at twice the size, a second resizing leaves hardly a trace of the first
        self.min_side = 2 * resized_side(image_size, resize)

    def __call__(self, image: Tensor) -> Tensor:
        shorter = min(image.shape[-2:])
        if max(image.shape[-2:]) > LONGEST * shorter:
            height, width = (min(side, LONGEST * shorter) for side in image.shape[-2:])
            image = v2.functional.center_crop(image, [height, width])
        if self.resize is None and shorter <= self.image_size:
            side = self.image_size
        else:
            side = resized_side(self.image_size, self.resize)
        if shorter != side:
            image = resize(image, [side])
        return v2.functional.center_crop(image, [self.image_size])


def resize(image: Tensor, size: list[int]) -> Tensor:
    """Resize an image [3, H, W], its shorter side if there is one size, by bicubic interpolation.

    Channels last, which is much the fastest layout for it.
    """
    return v2.functional.resize(
        image[None].contiguous(memory_format=torch.channels_last),
        size,
        interpolation=InterpolationMode.BICUBIC,
        antialias=True,
    )[0]
