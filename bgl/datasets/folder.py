"""Your own images: ``root/CLASS/*``, or ``root/train/CLASS/*`` beside ``val`` and ``test``."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from bgl.datasets.listing import Listing, join_names
from bgl.images import IMAGE_SUFFIXES

#: What the folders of the parts may be called, in lower or upper case.
PARTS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}


def read_folder(root: str | Path) -> Listing:
    """List the image files of every class folder, classes and files in alphabetical order.

    A folder ``train`` makes the folders ``train``, ``val`` and ``test`` the parts; otherwise the
    folders in ``root`` are the classes. A class has all images below its folder. Names that begin
    with a dot and files that do not end like an image are ignored.

    Raises:
        FileNotFoundError: If ``root`` is missing.
        ValueError: If there are no class folders with images.
    """
    root = Path(os.path.abspath(root))
    if not root.is_dir():
        raise FileNotFoundError(
            f"Expected argument `root` (--data-root) to be a folder, but got {root}"
        )
    named = {folder.name.lower(): folder for folder in _folders(root)}
    parts = {part: named[name] for part, names in PARTS.items() for name in names if name in named}
    if "train" not in parts:
        if "test" in parts:
            raise FileNotFoundError(
                f"Expected {root} with {parts['test'].name}/ to have train/ as well, but "
                f"{root / 'train'} is missing: add it, or pass the folder above the class folders"
            )
        parts = {"train": root}
    listing = Listing(root, parts)
    loose: list[Path] = []
    empty: list[Path] = []
    for folder in {root, *parts.values()}:
        loose += _images_in(folder)
    for part, folder in parts.items():
        for entry in _folders(folder):
            files = sorted(_images_below(entry))
            if files:
                listing.parts[part][entry.name] = files
            else:
                empty.append(entry)
    _check_not_empty(listing, root, loose)
    beside = (
        [] if parts["train"] == root else [f for f in _folders(root) if f not in parts.values()]
    )
    left_out = {
        f"Folders beside train in {root} that are no part": [
            f for f in beside if any(_images_below(f))
        ],
        f"Images in {root} that lie in no class folder": sorted(loose),
        f"Class folders in {root} without images": empty,
    }
    for what, places in left_out.items():
        if names := [place.relative_to(root).as_posix() for place in places]:
            listing.notes.append(f"{what} are left out: {join_names(names, 5)}")
    return listing


def _check_not_empty(listing: Listing, root: Path, loose: list[Path]) -> None:
    for part, classes in listing.parts.items():
        if classes:
            continue
        hint = (
            f"its images, such as {loose[0].name}, lie in no class folder: put those of each class "
            "into a folder of its own"
            if loose
            else f"put the images ({' '.join(sorted(IMAGE_SUFFIXES))}) of each class into a folder "
            "of its own"
        )
        raise ValueError(
            f"Expected a folder with images for each class in {listing.origins[part]}, but got "
            f"none: {hint}"
        )
    classes = listing.parts["train"]
    if listing.parts.keys() == {"train"} and len(classes) == 1:
        (name,) = classes
        raise ValueError(
            f"Expected {root} to have a folder for each class, but got {name} alone: pass the "
            f"folder above the class folders, for instance {root / name}"
        )


def _folders(folder: Path) -> list[Path]:
    return sorted(
        entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith(".")
    )


def _images_in(folder: Path) -> list[Path]:
    """List the image files directly in a folder."""
    return sorted(
        file
        for file in folder.iterdir()
        if file.suffix.lower() in IMAGE_SUFFIXES
        and not file.name.startswith(".")
        and not file.is_dir()
    )


def _images_below(folder: Path) -> Iterator[Path]:
    """Yield the image files in a folder and in those inside it."""
    yield from _images_in(folder)
    for entry in _folders(folder):
        yield from _images_below(entry)
