"""Image files among files and in folders."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from bgl.images.reading import IMAGE_SUFFIXES


def find_images(places: Iterable[str | Path]) -> list[Path]:
    """Find the image files among files and in folders, as absolute paths, each once.

    Folders are searched to the bottom, in alphabetical order, for files that end like an image;
    names that begin with a dot are left alone. Files are taken whatever they end in.

    Raises:
        FileNotFoundError: If a place does not exist.
        ValueError: If a folder holds no image, or a single path is not in a list.

    Example:
        >>> find_images(["no/such/file.jpg"])
        Traceback (most recent call last):
        FileNotFoundError: Expected argument `images` to be files and folders, but there is no
        no/such/file.jpg
    """
    if isinstance(places, (str, Path)):
        raise ValueError(f"Expected argument `images` to be paths in a list, got {places!r}")
    found: dict[Path, None] = {}
    for place in map(Path, places):
        found |= dict.fromkeys(map(Path, files_of(place)))
    return list(found)


def files_of(place: Path) -> list[str]:
    """Find the image files of one place, as :func:`find_images` does.

    Raises:
        FileNotFoundError: If it does not exist.
        ValueError: If it is a folder without images.
    """
    if place.is_dir():
        files = list(_images_below(str(place.absolute())))
        if not files:
            raise ValueError(
                f"Expected argument `images` to be folders with images, but {place} has no "
                f"file of the kinds {' '.join(sorted(IMAGE_SUFFIXES))}"
            )
        return files
    if not place.exists():
        raise FileNotFoundError(
            f"Expected argument `images` to be files and folders, but there is no {place}"
        )
    return [str(place.absolute())]


def _images_below(folder: str) -> Iterator[str]:
    """Yield the image files below a folder; of millions, nothing but their names is kept."""
    with os.scandir(folder) as entries:
        ordered = sorted(entries, key=lambda entry: entry.name)
    for entry in ordered:
        if entry.name.startswith("."):
            continue
        if entry.is_dir(follow_symlinks=False):
            yield from _images_below(entry.path)
        elif os.path.splitext(entry.name)[1].lower() in IMAGE_SUFFIXES:
            yield entry.path
