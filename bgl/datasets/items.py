"""Datasets of other libraries: items that hold an image and a label."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bgl._checks import describe
from bgl.images import BrokenImageError
from bgl.images.converting import as_image, is_image_like


@dataclass(frozen=True)
class Item:
    """An image of another dataset, read when it is asked for."""

    source: Any
    index: int
    key: str | int  # of the image in the item

    def read(self) -> Tensor:
        """Read the image, a uint8 tensor [3, H, W].

        Raises:
            BrokenImageError: If it cannot be decoded, or is nothing that can be taken for an image.
        """
        image = self.source[self.index][self.key]
        if isinstance(image, dict):  # an image of Hugging Face that is not decoded yet
            image = image.get("bytes") or image.get("path")
        if isinstance(image, Tensor) and image.is_floating_point():
            low, high = (float(value) for value in image.aminmax())
            if low >= 0 and high <= 1:  # as torchvision's ToTensor makes them
                image = (image * 255).round().to(torch.uint8)
        if not is_image_like(image):
            raise BrokenImageError(
                f"item {self.index}",
                f"it holds {describe(image)} as its image; take the dataset without a transform",
            )
        return as_image(image)


def read_items(
    items: Any, image: str, label: str, class_names: Sequence[str] | None
) -> tuple[list[Item], Tensor, list[str]]:
    """Read the labels of a dataset; images are left where they are.

    Returns:
        The images, their labels as ids, and the names of the classes that have an image.

    Raises:
        ValueError: If it has no such columns, no length or no items.
    """
    if not hasattr(items, "__len__") or not hasattr(items, "__getitem__") or len(items) == 0:
        raise ValueError(
            "Expected argument `items` to be a dataset with a length, items by number and at least "
            f"one of them, got {type(items).__name__}"
        )
    if hasattr(items, "column_names"):
        if absent := [name for name in (image, label) if name not in items.column_names]:
            raise ValueError(
                f"Expected argument `items` to have the columns {image!r} and {label!r}, but "
                f"{absent[0]!r} is not among {items.column_names}: name them with `image`, `label`"
            )
        labels = list(items[label])
        class_names = class_names or getattr(items.features[label], "names", None)
        key: str | int = image
    else:
        targets = getattr(items, "targets", None)  # of torchvision: no image has to be decoded
        if targets is None or len(targets) != len(items):
            targets = [items[i][1] for i in range(len(items))]
        labels = list(targets)
        class_names = class_names or getattr(items, "classes", None)
        key = 0
    labels = [value.item() if isinstance(value, Tensor) else value for value in labels]
    present = sorted(set(labels))
    ids = {value: i for i, value in enumerate(present)}
    names = [str(value if class_names is None else class_names[value]) for value in present]
    counts = Counter(names)  # ImageNet has a bird and a machine called crane
    names = [
        name if counts[name] == 1 else f"{name} ({value})"
        for name, value in zip(names, present, strict=True)
    ]
    found = torch.tensor([ids[value] for value in labels])
    return [Item(items, i, key) for i in range(len(items))], found, names
