"""Datasets with class-disjoint parts, and the transforms for them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from bgl._checks import check_choice
from bgl.datasets.base import ImageDataset, Splits, Transform
from bgl.datasets.emoji import load_emoji
from bgl.datasets.folder import IMAGE_SUFFIXES, load_folder
from bgl.datasets.pixels import raw_pixels
from bgl.datasets.reading import BrokenImageError, read_image
from bgl.datasets.transforms import eval_transform, train_transform

__all__ = [
    "IMAGE_SUFFIXES",
    "BrokenImageError",
    "ImageDataset",
    "Splits",
    "Transform",
    "dataset_names",
    "eval_transform",
    "load_dataset",
    "load_emoji",
    "load_folder",
    "raw_pixels",
    "read_image",
    "train_transform",
]

_PACKAGED: dict[str, Callable[[], Splits]] = {"emoji": load_emoji}
_FROM_ROOT: dict[str, Callable[[str | Path, float, int, bool], Splits]] = {"folder": load_folder}


def dataset_names() -> tuple[str, ...]:
    """The names that :func:`load_dataset` knows.

    >>> dataset_names()
    ('emoji', 'folder')
    """
    return (*_PACKAGED, *_FROM_ROOT)


def load_dataset(
    name: str,
    root: str | Path | None = None,
    *,
    val_fraction: float = 0.25,
    seed: int = 0,
    skip_broken: bool = False,
) -> Splits:
    """Load a dataset by name.

    Args:
        name: one of :func:`dataset_names`.
        root: the folder it lies in; None for a packaged dataset ("emoji").
        val_fraction: share of the train classes held out for validation.
        seed: seed of that draw. Packaged datasets have fixed parts and need neither.
        skip_broken: leave out images that can't be decoded; see :func:`load_folder`.

    Raises:
        ValueError: if the name is unknown, ``root`` is missing where it is needed or given where
            it is not, or the folder is not as expected.
        FileNotFoundError: if ``root`` or a part of it does not exist.
    """
    check_choice(name, "name", dataset_names())
    if name in _PACKAGED:
        if root is not None:
            raise ValueError(
                f"Expected argument `root` to be None for the packaged dataset {name!r}, "
                f"got {str(root)!r}"
            )
        return _PACKAGED[name]()
    if root is None:
        raise ValueError(
            f"Expected argument `root` to be the folder of the dataset {name!r}, got None"
        )
    return _FROM_ROOT[name](root, val_fraction, seed, skip_broken)
