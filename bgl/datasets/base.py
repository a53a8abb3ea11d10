"""Labelled images in memory or in files, and the class-disjoint parts of a benchmark."""

from __future__ import annotations

import copy
import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from bgl._checks import as_tensor, check_index_vector, check_within, describe
from bgl.datasets.items import Item, read_items
from bgl.images import ImageCache, Transform, read_image


class ImageDataset(Dataset[tuple[Tensor, int]]):
    """Images with class labels, from files read on demand or from a tensor in memory.

    An item is ``(image, label)``: an RGB uint8 tensor [3, H, W], after the transform if there is
    one, and an ``int``.

    Args:
        images: Paths of image files, or a uint8 tensor of shape [N, 3, H, W].
        labels: Int64 tensor of shape [N] with ids into ``class_names``.
        class_names: One name a class.
        transform: Applied to an image when it is asked for.
        paths: A name of every image for people to read; by default the files' paths, and the
            position for images in memory.

    Raises:
        ValueError: If the shapes or types do not fit, or a label is no id into ``class_names``.
            Reading an image that cannot be decoded raises
            :class:`~bgl.images.BrokenImageError`, a ``ValueError`` that names the file.

    Example:
        >>> images = torch.zeros(3, 3, 8, 8, dtype=torch.uint8)
        >>> data = ImageDataset(images, torch.tensor([0, 1, 1]), ["cat", "dog"])
        >>> len(data), data.num_classes, data.select_classes([1]).class_names
        (3, 2, ['dog'])
    """

    def __init__(
        self,
        images: Tensor | Sequence[str | Path | Item],
        labels: Tensor,
        class_names: Sequence[str],
        transform: Transform | None = None,
        paths: Sequence[str] | None = None,
    ) -> None:
        self.images: Tensor | list[Path | Item]
        if isinstance(images, Tensor):
            if images.dtype != torch.uint8 or images.dim() != 4 or images.size(1) != 3:
                raise ValueError(
                    "Expected argument `images` to be a uint8 tensor of shape [N, 3, H, W] or a "
                    f"list of paths, but got {describe(images)}"
                )
            self.images = images
        elif isinstance(images, (str, Path)):
            raise ValueError(f"Expected argument `images` to be a list of paths, got {images!r}")
        else:
            self.images = [image if isinstance(image, Item) else Path(image) for image in images]
        names = range(len(images)) if isinstance(images, Tensor) else images
        self.paths = [str(name) for name in (names if paths is None else paths)]
        check_index_vector(labels, len(images), "labels")
        check_within(labels, "labels", 0, len(class_names) - 1, "ids into `class_names`")
        if twice := [name for name, count in Counter(class_names).items() if count > 1]:
            raise ValueError(
                "Expected argument `class_names` to have every name once, but "
                f"{twice[0]!r} is there more than once"
            )
        if len(self.paths) != len(images):
            raise ValueError(
                f"Expected argument `paths` to have one entry per image ({len(images)}), "
                f"but got {len(self.paths)}"
            )
        self.labels = labels.to(torch.int64)
        self.class_names = list(class_names)
        self.transform = transform
        self.cache: ImageCache | None = None

    @classmethod
    def from_items(
        cls,
        items: Any,
        *,
        image: str = "image",
        label: str = "label",
        class_names: Sequence[str] | None = None,
    ) -> ImageDataset:
        """Take a dataset of another library, whose images are read when they are asked for.

        Args:
            items: A Hugging Face dataset, or a PyTorch dataset or list of pairs (image, label).
                Its images are paths, bytes, Pillow images, uint8 arrays [H, W, 3] or uint8
                tensors [3, H, W]; floats from 0 to 1 are scaled. Labels are integers or text.
            image, label: Columns of a Hugging Face dataset.
            class_names: A name for each integer label; by default the dataset's own names.

        Raises:
            ValueError: If ``items`` is no such dataset.

        Example:
            >>> pairs = [(torch.zeros(3, 8, 8, dtype=torch.uint8), name) for name in "aab"]
            >>> ImageDataset.from_items(pairs)
            ImageDataset(3 images, 2 classes)
        """
        found, labels, names = read_items(items, image, label, class_names)
        return cls(found, labels, names, paths=[str(i) for i in range(len(found))])

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = self.read(index)
        if self.transform is not None:
            image = self.transform(image)
        return image, int(self.labels[index])

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self)} images, {self.num_classes} classes)"

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    def read(self, index: int, min_side: int | None = None) -> Tensor:
        """Read the image before the transform, a uint8 tensor [3, H, W].

        Args:
            index: Which image.
            min_side: Number of pixels that suffices for its shorter side. None: the whole image,
                which is never cached.

        Raises:
            BrokenImageError: If its file cannot be decoded.
        """
        image = self.images[index]
        if isinstance(image, Item):
            return image.read()
        if isinstance(image, Tensor):
            return image
        if self.cache is not None and min_side is not None:
            return self.cache.read(image)
        return read_image(image, min_side)

    def with_transform(self, transform: Transform | None) -> ImageDataset:
        """Make a copy with another transform that shares images and labels."""
        other = copy.copy(self)
        other.transform = transform
        return other

    def with_cache(self, cache: ImageCache) -> ImageDataset:
        """Make a copy that decodes each file once; images in memory need no cache."""
        other = copy.copy(self)
        other.cache = cache
        return other

    def subset(self, indices: Tensor | Sequence[int]) -> ImageDataset:
        """Select the images at ``indices``, in that order.

        Classes that none of them belongs to are dropped and the others numbered again, in their
        old order and under their old names.

        Raises:
            ValueError: If there are no indices, or one is out of range.
        """
        chosen = _index_vector(indices, "indices", len(self))
        if chosen.numel() == 0:
            raise ValueError("Expected argument `indices` to have at least one entry, but got 0")
        kept, labels = self.labels[chosen].unique(return_inverse=True)
        positions = chosen.tolist()
        part = ImageDataset(
            self.images[chosen]
            if isinstance(self.images, Tensor)
            else [self.images[i] for i in positions],
            labels,
            [self.class_names[c] for c in kept.tolist()],
            self.transform,
            [self.paths[i] for i in positions],
        )
        part.cache = self.cache
        return part

    def select_classes(self, ids: Tensor | Sequence[int]) -> ImageDataset:
        """Select all images of the classes ``ids``, numbered again in their old order.

        Raises:
            ValueError: If an id is out of range or no image is left.
        """
        wanted = _index_vector(ids, "ids", self.num_classes)
        return self.subset(torch.isin(self.labels, wanted).nonzero().flatten())


def _index_vector(values: Tensor | Sequence[int], name: str, limit: int) -> Tensor:
    """Convert ``values`` to an int64 vector, if they are integers from 0 to ``limit - 1``."""
    vector = as_tensor(values, name)
    if vector.numel() == 0:
        return vector.long()
    check_index_vector(vector, vector.numel(), name)
    check_within(vector, name, 0, limit - 1)
    return vector.long()


@dataclass(frozen=True)
class Splits:
    """The parts of a benchmark; no class is in two of train, validation and test.

    Attributes:
        name: The dataset's name.
        train: Images to train on.
        val: Images to choose the epoch on, or None.
        test: The queries, which are the gallery as well if there is no other.
        gallery: A separate gallery that numbers its classes as ``test`` does, or None.
        skipped: Files left out because they cannot be decoded.

    Raises:
        ValueError: If two parts share a class name, or the gallery's classes are not the test
            set's.
    """

    name: str
    train: ImageDataset
    val: ImageDataset | None
    test: ImageDataset
    gallery: ImageDataset | None = None
    skipped: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        seen: dict[str, str] = {}
        for part, dataset in self.parts().items():
            if part == "gallery":
                continue
            shared = [name for name in dataset.class_names if name in seen]
            if shared:
                raise ValueError(
                    f"Expected argument `{part}` to share no class with `{seen[shared[0]]}`, "
                    f"but got {shared[0]!r} in both"
                )
            seen.update(dict.fromkeys(dataset.class_names, part))
        if self.gallery is not None and self.gallery.class_names != self.test.class_names:
            raise ValueError(
                "Expected argument `gallery` to have the class names of `test` in the same order"
            )

    def parts(self) -> dict[str, ImageDataset]:
        """Return the parts there are, by name: train, val, test, gallery."""
        parts = {"train": self.train, "val": self.val, "test": self.test, "gallery": self.gallery}
        return {part: dataset for part, dataset in parts.items() if dataset is not None}

    def __str__(self) -> str:
        titles = {"train": "training", "val": "validation"}
        lines = [
            f"{titles.get(part, part)}: {images.num_classes:,} classes with {len(images):,} images"
            for part, images in self.parts().items()
        ]
        return "\n  ".join([self.name, *lines])

    @property
    def digest(self) -> str:
        """12 hexadecimal digits that stand for which image is in which part and class."""
        lines = sorted(
            f"{part}\t{dataset.class_names[label]}\t{path}\n"
            for part, dataset in self.parts().items()
            for label, path in zip(dataset.labels.tolist(), dataset.paths, strict=True)
        )
        return hashlib.sha256("".join(lines).encode(errors="surrogatepass")).hexdigest()[:12]
