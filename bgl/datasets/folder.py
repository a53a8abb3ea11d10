"""Your own images: ``root/train/CLASS/*`` and ``root/test/CLASS/*``."""

from __future__ import annotations

from pathlib import Path

from bgl.datasets.base import Splits
from bgl.datasets.splits import Classes, build_splits
from bgl.images import IMAGE_SUFFIXES


def load_folder(
    root: str | Path, val_fraction: float = 0.25, seed: int = 0, skip_broken: bool = False
) -> Splits:
    """Load ``root/train/CLASS/*`` and ``root/test/CLASS/*``, with validation classes from train.

    An image is a file that ends in .bmp, .gif, .jpeg, .jpg, .png, .ppm, .tif, .tiff or .webp.
    Names that begin with a dot are left alone.

    Args:
        root: folder with ``train`` and ``test``, which have a folder for each class and no class
            in common.
        val_fraction: share of the train classes held out for validation, drawn with ``seed``: at
            least 2 classes, and at least 2 stay. 0 leaves ``val`` None.
        seed: a non-negative integer.
        skip_broken: decode every image once at the start and leave out those that fail, with one
            warning and in ``skipped`` of the result. Otherwise such an image raises when read.

    Warns:
        UserWarning: with the classes that have one image only: no other image is like it.

    Raises:
        FileNotFoundError: if ``root``, ``root/train`` or ``root/test`` is missing.
        ValueError: if there are no class folders, one is without (readable) images, a class name
            is in both parts, or there are too few train classes for ``val_fraction``.
    """
    root = Path(root)
    if not root.is_dir():
        raise FileNotFoundError(
            f"Expected argument `root` (--data-root) to be a folder, but got {root}"
        )
    parts = {part: _scan(root, part) for part in ("train", "test")}
    sources = {part: root / part for part in parts}
    return build_splits("folder", root, parts, sources, val_fraction, seed, skip_broken)


def _scan(root: Path, part: str) -> Classes:
    """The image files of every class folder, both in alphabetical order."""
    folder = root / part
    if not folder.is_dir():
        raise FileNotFoundError(
            f"Expected argument `root` (--data-root) to be a folder with train/CLASS/*.jpg and "
            f"test/CLASS/*.jpg, but {folder} is missing"
        )
    classes: Classes = {}
    for entry in sorted(folder.iterdir()):
        if not entry.is_dir() or entry.name.startswith("."):
            continue
        classes[entry.name] = sorted(
            file
            for file in entry.iterdir()
            if file.suffix.lower() in IMAGE_SUFFIXES and not file.name.startswith(".")
        )
        if not classes[entry.name]:
            raise ValueError(f"Expected images ({_suffixes()}) in {entry}, but got none")
    if not classes:
        raise ValueError(f"Expected a folder for each class in {folder}, but got none")
    return classes


def _suffixes() -> str:
    return " ".join(sorted(IMAGE_SUFFIXES))
