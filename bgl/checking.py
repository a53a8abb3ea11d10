"""Look at a collection of images before training: what cannot be read, and what is there twice."""

from __future__ import annotations

import hashlib
import html
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from bgl._gallery import figure, write_gallery
from bgl.datasets.decoding import short_reason
from bgl.datasets.folder import read_folder
from bgl.datasets.listing import Listing, join_names
from bgl.datasets.splits import VAL_SHARE, alike_names, draw, shared_names
from bgl.datasets.table import read_table
from bgl.images import BrokenImageError, read_image
from bgl.images.loading import num_workers
from bgl.images.reading import printable

__all__ = ["Copies", "Report", "check_images", "write_page"]

SIDE = 16  # of the thumbnails that are compared
NEAR = 5.0  # root mean square difference of two of them, of 255, below which images are alike
CONTRAST = 0.1  # and below this share of their own spread: flat images are all close
LISTED = 5  # of each kind in the printed report; the page has all


@dataclass(frozen=True)
class Copies:
    """Images that show the same.

    Args:
        files: Two or more of them, as (part, class, file).
        exact: Whether all their pixels are equal.
    """

    files: list[tuple[str, str, Path]]
    exact: bool

    @property
    def leaks(self) -> bool:
        """Whether two of them are in different parts, so that a test image was trained on."""
        return len({part for part, _, _ in self.files} - {"gallery"}) > 1

    @property
    def contradicts(self) -> bool:
        """Whether two of them are of different classes."""
        return len({name for _, name, _ in self.files}) > 1


@dataclass
class Report:
    """What :func:`check_images` has found; printed, it is a summary."""

    home: Path
    classes: dict[str, dict[str, int]]  # images by class, by part
    sizes: list[tuple[int, int]]  # width and height of every image
    broken: dict[Path, str]
    copies: list[Copies]
    notes: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)  # why training refuses the classes

    @property
    def fit(self) -> bool:
        """Whether training takes the images, and none is in two parts."""
        leaks = any(group.leaks for group in self.copies)
        return not (self.broken or self.refused or leaks)

    def __str__(self) -> str:
        lines = [str(self.home)]
        for part, classes in self.classes.items():
            counts = classes.values()
            lines.append(
                f"  {part}: {len(counts):,} classes with {sum(counts):,} images, "
                f"{_range(counts, 'each')}"
            )
        if self.sizes:
            lines.append(f"  shorter side of an image: {_range(map(min, self.sizes), 'px')}")
        lines += [f"note: {note}" for note in self.notes]
        if self.broken:
            lines.append(f"unreadable: {len(self.broken)}; --skip-broken trains without:")
            lines += _first([f"{self._name(file)}: {why}" for file, why in self.broken.items()])
        for title, groups in self.findings().items():
            lines.append(f"{title}: {len(groups)}")
            lines += _first(
                [" = ".join(self._name(file) for _, _, file in group.files) for group in groups]
            )
        lines += [f"training refuses these classes: {reason}" for reason in self.refused]
        lines.append("fit to train on" if self.fit else "not fit to train on as it is")
        return "\n".join(lines)

    def findings(self) -> dict[str, list[Copies]]:
        """Group the copies by what is wrong with them, the worst first; empty groups left out."""
        kinds: dict[str, list[Copies]] = {}
        for group in sorted(
            self.copies, key=lambda g: (not g.leaks, not g.contradicts, not g.exact)
        ):
            what = "the same image" if group.exact else "nearly the same image"
            if group.leaks:
                where = "in two parts (a leak: remove it from one of them)"
            elif group.contradicts:
                where = "in two classes (is one of them wrong?)"
            else:
                where = "twice in a class"
            kinds.setdefault(f"{what} {where}", []).append(group)
        return kinds

    def _name(self, file: Path) -> str:
        return printable(file.relative_to(self.home).as_posix())


def check_images(data: str | Path, root: str | Path | None = None) -> Report:
    """Look at every image of a folder or table: classes, sizes, broken files, copies, leaks.

    Copies have the same pixels, or (nearly the same image) thumbnails that differ by little: the
    image was saved, scaled or compressed anew.

    Args:
        data: A folder with ``CLASS/*`` or ``train/CLASS/*`` …, or a CSV file: see
            :func:`bgl.datasets.load_dataset`.
        root: What the paths of a CSV file are relative to.

    Raises:
        FileNotFoundError: If there is no such folder or file.
        ValueError: If it holds no classes.

    Example:
        >>> print(check_images("photos"))  # doctest: +SKIP
    """
    if not Path(data).exists():
        raise FileNotFoundError(
            f"Expected argument `data` to be a folder or a CSV file, but there is no {data}"
        )
    listing = read_folder(data) if Path(data).is_dir() else read_table(data, root)
    places = [
        (part, name, file)
        for part, classes in listing.parts.items()
        for name, files in classes.items()
        for file in files
    ]
    with ThreadPoolExecutor(num_workers(-1)) as pool:
        looks = dict(zip(places, pool.map(_look, listing.files), strict=True))
    good = {place: look for place, look in looks.items() if isinstance(look, _Look)}
    return Report(
        listing.home,
        {
            part: {name: len(files) for name, files in classes.items()}
            for part, classes in listing.parts.items()
        },
        [look.size for look in good.values()],
        {place[2]: look for place, look in looks.items() if isinstance(look, str)},
        find_copies(list(good), list(good.values())),
        [*listing.notes, *alike_names(listing)],
        _refused(listing),
    )


@dataclass(frozen=True)
class _Look:
    """What is kept of an image."""

    size: tuple[int, int]
    digest: bytes
    thumbnail: np.ndarray


def _look(file: Path) -> _Look | str:
    """Decode an image; the reason if that fails."""
    try:
        pixels = read_image(file).permute(1, 2, 0).contiguous().numpy()
    except BrokenImageError as error:
        return short_reason(error)
    digest = hashlib.blake2b(
        pixels.tobytes(), digest_size=16, person=str(pixels.shape).encode()[:16]
    )
    small = Image.fromarray(pixels).resize((SIDE, SIDE), Image.Resampling.BOX)
    height, width = pixels.shape[:2]
    return _Look((width, height), digest.digest(), np.asarray(small))


def find_copies(
    places: Sequence[tuple[str, str, Path]], looks: Sequence[_Look], chunk: int = 1024
) -> list[Copies]:
    """Find the images that are the same, and those that are nearly so."""
    first: dict[bytes, int] = {}
    groups: dict[int, list[int]] = {}
    for i, look in enumerate(looks):
        groups.setdefault(first.setdefault(look.digest, i), []).append(i)
    copies = [Copies([places[i] for i in g], True) for g in groups.values() if len(g) > 1]
    if not groups:
        return []
    # one of each group of equals; every pair once, by its distance as thumbnails
    distinct = list(groups)
    x = torch.from_numpy(np.stack([looks[i].thumbnail for i in distinct])).flatten(1).float()
    return copies + [
        Copies([places[distinct[i]], places[distinct[j]]], False) for i, j in near_pairs(x, chunk)
    ]


def near_pairs(x: Tensor, chunk: int = 1024) -> list[tuple[int, int]]:
    """Find the pairs i < j of thumbnails as rows that are alike."""
    limits = (CONTRAST**2 * x.var(1, correction=0)).clamp(max=NEAR**2) * x.size(1)
    x = x - x.mean(0)  # small numbers lose less in the difference of squares
    squares = x.square().sum(1)
    pairs: list[tuple[int, int]] = []
    for start in range(0, len(x), chunk):
        rows = x[start : start + chunk]
        distances = squares[start : start + chunk, None] + squares[start:] - 2 * rows @ x[start:].T
        found = (distances < limits[start : start + chunk, None]).triu(1).nonzero() + start
        pairs += [(i, j) for i, j in found.tolist()]
    return pairs


def _refused(listing: Listing) -> list[str]:
    """Say why training would refuse the classes as they are."""
    parts, reasons = listing.parts, []
    if shared := sorted({name for names in shared_names(listing).values() for name in names}):
        reasons.append(
            f"class names in more than one part: {join_names(shared, LISTED)}; --resplit pools all "
            "images and splits them anew by class"
        )
    try:
        draw(list(parts["train"]), VAL_SHARE, 0, parts)
    except ValueError as error:
        reasons.append(str(error))
    return reasons


def _range(numbers: Iterable[int], unit: str) -> str:
    """Write the smallest, the largest and the median of some numbers."""
    ordered = sorted(numbers)
    return f"{ordered[0]} to {ordered[-1]} {unit}, {ordered[len(ordered) // 2]} in the middle"


def _first(lines: list[str]) -> list[str]:
    more = [f"  … and {len(lines) - LISTED} more"] if len(lines) > LISTED else []
    return [f"  {line}" for line in lines[:LISTED]] + more


def write_page(report: Report, path: str | Path) -> Path:
    """Write the report as one HTML file with pictures, which needs no network and no other file."""
    sections = [f"<pre>{html.escape(str(report))}</pre>"]
    for title, groups in report.findings().items():
        rows = "\n".join(
            "<ol>"
            + "".join(f"<li>{figure(file, f'{part}, {name}')}</li>" for part, name, file in g.files)
            + "</ol>"
            for g in groups
        )
        sections.append(f"<section><h2>{html.escape(title)}: {len(groups)}</h2>\n{rows}</section>")
    return write_gallery(path, f"Check of {report.home.name}", "", sections)
