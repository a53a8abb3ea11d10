"""Your own images: ``root/train/CLASS/*`` and ``root/test/CLASS/*``."""

from __future__ import annotations

import random
import warnings
from pathlib import Path

import torch

from bgl._checks import check_int, check_real
from bgl.datasets.base import ImageDataset, Splits
from bgl.datasets.reading import BrokenImageError, read_image

#: Files with these endings, in small or capital letters, are images; others are left alone.
IMAGE_SUFFIXES = frozenset(
    {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"}
)

_Classes = dict[str, list[Path]]


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
    check_real(val_fraction, "val_fraction", 0.0, 1.0)
    check_int(seed, "seed", 0)
    root = Path(root)
    if not root.is_dir():
        raise FileNotFoundError(f"Expected argument `root` to be a folder, but got {root}")
    train, test = _scan(root, "train"), _scan(root, "test")
    shared = sorted(train.keys() & test.keys())
    if shared:
        raise ValueError(
            f"Expected {root / 'train'} and {root / 'test'} to have no class name in common, "
            f"but got {_listed(shared)}"
        )
    skipped = _drop_broken(root, train, test) if skip_broken else ()
    lonely = [name for part in (train, test) for name, files in part.items() if len(files) == 1]
    if lonely:
        warnings.warn(
            f"{len(lonely)} classes in {root} have one image only: {_listed(lonely)}",
            UserWarning,
            stacklevel=2,
        )
    held_out = _draw_validation(list(train), val_fraction, seed)
    val = {name: train.pop(name) for name in held_out}
    return Splits(
        "folder",
        _dataset(root, train),
        _dataset(root, val) if val else None,
        _dataset(root, test),
        skipped=skipped,
    )


def _scan(root: Path, part: str) -> _Classes:
    """The image files of every class folder, both in alphabetical order."""
    folder = root / part
    if not folder.is_dir():
        raise FileNotFoundError(
            f"Expected argument `root` to be a folder with `{part}` in it, but {folder} is missing"
        )
    classes: _Classes = {}
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


def _drop_broken(root: Path, *parts: _Classes) -> tuple[str, ...]:
    """Take out of ``parts`` the files that can't be decoded; return their names."""
    broken: list[str] = []
    for part in parts:
        for name, files in part.items():
            part[name] = [file for file in files if _is_readable(file)]
            broken += [str(file) for file in files if file not in set(part[name])]
            if not part[name]:
                raise ValueError(
                    f"Expected images that can be decoded in {files[0].parent}, "
                    f"but all {len(files)} are broken; remove the folder to leave the class out"
                )
    if broken:
        warnings.warn(
            f"Left out {len(broken)} images in {root} that can't be decoded: {_listed(broken)}",
            UserWarning,
            stacklevel=3,
        )
    return tuple(broken)


def _is_readable(path: Path) -> bool:
    try:
        read_image(path)
    except BrokenImageError:
        return False
    return True


def _draw_validation(names: list[str], fraction: float, seed: int) -> list[str]:
    """The classes to hold out, in alphabetical order: ``fraction`` of them, but 2 at least."""
    if fraction == 0:
        return []
    count = max(2, round(fraction * len(names)))
    if len(names) - count < 2:
        raise ValueError(
            f"Expected argument `val_fraction` to leave 2 of {len(names)} train classes or more "
            f"after {count} for validation, got {fraction}; 0 goes without validation"
        )
    return sorted(random.Random(seed).sample(names, count))


def _dataset(root: Path, classes: _Classes) -> ImageDataset:
    files = [file for members in classes.values() for file in members]
    sizes = torch.tensor([len(members) for members in classes.values()])
    labels = torch.arange(len(classes)).repeat_interleave(sizes)
    # Relative names, so that the split's digest is the same wherever the folder lies.
    names = [file.relative_to(root).as_posix() for file in files]
    return ImageDataset(files, labels, list(classes), paths=names)


def _listed(names: list[str], limit: int = 20) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
