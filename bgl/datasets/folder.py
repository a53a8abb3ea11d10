"""Your own images: ``root/train/CLASS/*`` and ``root/test/CLASS/*``."""

from __future__ import annotations

from pathlib import Path

from bgl.datasets.listing import Listing
from bgl.images import IMAGE_SUFFIXES


def read_folder(root: str | Path) -> Listing:
    """List the image files of every class folder, classes and files in alphabetical order.

    Names that begin with a dot and files that do not end like an image are ignored.

    Raises:
        FileNotFoundError: If ``root``, ``root/train`` or ``root/test`` is missing.
        ValueError: If a part has no class folders, or one of them has no images.
    """
    root = Path(root)
    if not root.is_dir():
        raise FileNotFoundError(
            f"Expected argument `root` (--data-root) to be a folder, but got {root}"
        )
    listing = Listing(root, {part: root / part for part in ("train", "test")})
    for part in listing.parts:
        folder = listing.home / part
        if not folder.is_dir():
            raise FileNotFoundError(
                "Expected argument `root` (--data-root) to be a folder with train/CLASS/*.jpg and "
                f"test/CLASS/*.jpg, but {root / part} is missing"
            )
        for entry in sorted(folder.iterdir()):
            if not entry.is_dir() or entry.name.startswith("."):
                continue
            files = sorted(
                file
                for file in entry.iterdir()
                if file.suffix.lower() in IMAGE_SUFFIXES and not file.name.startswith(".")
            )
            if not files:
                suffixes = " ".join(sorted(IMAGE_SUFFIXES))
                raise ValueError(f"Expected images ({suffixes}) in {entry}, but got none")
            listing.parts[part][entry.name] = files
        if not listing.parts[part]:
            raise ValueError(f"Expected a folder for each class in {folder}, but got none")
    return listing
