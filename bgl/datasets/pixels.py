"""Pixels as features: the baseline that every learned embedding should beat."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from bgl.datasets.base import ImageDataset


def raw_pixels(dataset: ImageDataset) -> Tensor:
    """Compute each image's 16 × 16 RGB pixels less their mean, a float32 tensor [N, 768].

    The pixels are area averages of the whole image before the dataset's transform, whatever its
    shape. With a cosine distance they measure how far plain looks go.

    Raises:
        BrokenImageError: If a file cannot be decoded.

    Example:
        >>> images = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
        >>> raw_pixels(ImageDataset(images, torch.zeros(4).long(), ["noise"])).shape
        torch.Size([4, 768])
    """
    pixels = torch.empty(len(dataset), 3 * 16 * 16)
    for i in range(len(dataset)):
        image = dataset.read(i).unsqueeze(0).float() / 255
        pixels[i] = interpolate(image, size=(16, 16), mode="area").flatten()
    return pixels - pixels.mean(dim=1, keepdim=True)
