"""What is known of a public dataset besides its files."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bgl.datasets.listing import Classes, Listing


@dataclass(frozen=True)
class Archive:
    """A public archive whose checksum is known.

    Attributes:
        urls: Its addresses; the next is tried if one does not answer.
        filename: Its name on disk while it is fetched.
        size: Number of bytes.
        digest: Algorithm and hexadecimal checksum with a colon between.
    """

    urls: tuple[str, ...]
    filename: str
    size: int
    digest: str


@dataclass(frozen=True)
class Figures:
    """Number of classes and of images of a part, and who published them."""

    classes: int
    images: int
    source: str

    def __str__(self) -> str:
        return f"{self.classes:,} classes with {self.images:,} images"


@dataclass(frozen=True)
class Source:
    """A public dataset: all that bgl knows of it.

    Attributes:
        name: The name that :func:`~bgl.datasets.load_dataset` takes.
        title: The name that people know it by.
        access: Who gives it to whom, for an error message.
        folders: Names of its folder; the first is the one in the archive.
        markers: Files by any of which its folder is recognised.
        layout: What has to be in the folder, in words.
        figures: The published sizes of each part. "test" is the queries where the dataset has a
            gallery of its own, and all test images where the gallery is drawn.
        read: Reads its lists: takes the source and the dataset's folder, returns a
            :class:`~bgl.datasets.listing.Listing`.
        archive: The public archive, or None if there is none with a known checksum.
        recall_at: The K of Recall@K in the literature.
        draws_gallery: Whether one image of each test class is drawn for the gallery.
    """

    name: str
    title: str
    access: str
    folders: tuple[str, ...]
    markers: tuple[str, ...]
    layout: tuple[str, ...]
    figures: dict[str, tuple[Figures, ...]]
    read: Callable[[Source, Path], Listing]
    archive: Archive | None = None
    recall_at: tuple[int, ...] = (1, 2, 4, 8)
    draws_gallery: bool = False

    def find_home(self, root: str | Path) -> Path | None:
        """Find the folder with a marker: ``root``, or the dataset's folder in it; None if none."""
        root = Path(os.path.abspath(root))
        for home in (root, *(root / folder for folder in self.folders)):
            if any((home / marker).is_file() for marker in self.markers):
                return home
        return None

    def load(self, root: str | Path) -> Listing:
        """Read the lists of the dataset at ``root``.

        Raises:
            FileNotFoundError: If it is not there; the message says where to get it.
            ValueError: If a list is damaged.
        """
        home = self.find_home(root)
        if home is None:
            raise self.missing(Path(os.path.abspath(root)) / self.markers[0])
        return self.read(self, home)

    def find(self, home: Path, *candidates: str) -> Path:
        """Find the first of the files or folders ``candidates`` in ``home`` that exists.

        Raises:
            FileNotFoundError: If none does; the message says where to get the dataset.
        """
        for candidate in candidates:
            if (home / candidate).exists():
                return home / candidate
        raise self.missing(home / candidates[0])

    def missing(self, path: Path) -> FileNotFoundError:
        """Make the error for a file or folder that should be there."""
        return FileNotFoundError(
            f"Expected {self.title} with {path}, which is missing. {self.instructions()}"
        )

    def instructions(self) -> str:
        """Say where to get the dataset, whether it can be fetched, and what to put where."""
        fetch = ""
        if self.archive is not None:
            fetch = (
                f" bgl.datasets.download({self.name!r}, root), on the command line --download, "
                "fetches it."
            )
        return (
            f"{self.access}{fetch} Its folder, or a folder that has it as "
            f"`{self.folders[0]}`, is the root and needs {'; '.join(self.layout)}."
        )

    def mismatches(self, parts: dict[str, Classes]) -> dict[str, str]:
        """For each part whose sizes are none of the published ones, what was expected and found."""
        wrong = {}
        for part, known in self.figures.items():
            classes = parts[part]
            images = sum(len(files) for files in classes.values())
            if not any((len(classes), images) == (one.classes, one.images) for one in known):
                expected = " or ".join(str(one) for one in known)
                wrong[part] = f"expected {expected}, found {len(classes):,} with {images:,} images"
        return wrong
