"""From a listing to the parts of a benchmark: what all datasets have in common."""

from __future__ import annotations

import os
import random
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from unicodedata import normalize

import torch

from bgl._checks import check_int, check_real
from bgl.datasets.base import ImageDataset, Splits
from bgl.datasets.listing import Classes, Listing, join_names
from bgl.datasets.source import Source
from bgl.images import BrokenImageError, read_image
from bgl.images.reading import printable


def build_splits(
    name: str,
    listing: Listing,
    source: Source | None = None,
    *,
    val_fraction: float = 0.25,
    seed: int = 0,
    skip_broken: bool = False,
    allow_partial: bool = False,
) -> Splits:
    """Check a listing, hold some train classes out for validation, and make the datasets.

    Args:
        name: The dataset's name.
        listing: What is in which part.
        source: What is known of a public dataset.
        val_fraction, seed, skip_broken, allow_partial: See :func:`~bgl.datasets.load_dataset`.

    Warns:
        UserWarning: See :func:`~bgl.datasets.load_dataset`.

    Raises:
        FileNotFoundError: If none of the images is there.
        ValueError: See :func:`~bgl.datasets.load_dataset`.
    """
    check_real(val_fraction, "val_fraction", 0.0, 1.0)
    check_int(seed, "seed", 0)
    notes = list(listing.notes)
    if listing.repeated:
        notes.append(
            f"{len(listing.repeated)} lines repeat an image of the same class, which counts once; "
            f"remove them: {join_names(listing.repeated)}"
        )
    _check_disjoint(listing)
    notes += _twins(listing)
    notes += _check_complete(name, listing, source, allow_partial)
    parts = listing.parts
    for part, classes in parts.items():
        if not classes:
            raise ValueError(
                f"Expected {listing.origins[part]} to have images for {part}, but got none"
            )
    skipped = _drop_broken(listing, skip_broken)
    if skipped:
        notes.append(
            f"Left out {len(skipped)} images in {listing.home} that can't be decoded: "
            f"{join_names(skipped)}"
        )
    if source is not None and source.draws_gallery:
        parts["test"], parts["gallery"] = _draw_gallery(parts["test"], seed)
    notes += _unmatched(listing)
    train, test, gallery = parts["train"], parts["test"], parts.get("gallery")
    val = {drawn: train.pop(drawn) for drawn in _draw_validation(sorted(train), val_fraction, seed)}
    for note in notes:
        warnings.warn(note, UserWarning, stacklevel=3)
    # Query and gallery share the numbers of their classes.
    test_names = list(dict.fromkeys([*test, *(gallery or {})]))
    return Splits(
        name,
        _dataset(listing.home, train, list(train)),
        _dataset(listing.home, val, list(val)) if val else None,
        _dataset(listing.home, test, test_names),
        _dataset(listing.home, gallery, test_names) if gallery is not None else None,
        tuple(skipped),
    )


def _check_disjoint(listing: Listing) -> None:
    """Raise a ValueError with the names of the train classes that another part has as well.

    One name may be written with different Unicode characters (é, or e and an accent).
    """
    train = {normalize("NFC", name) for name in listing.parts["train"]}
    for part, classes in listing.parts.items():
        shared = sorted(name for name in classes if normalize("NFC", name) in train)
        if part == "train" or not shared:
            continue
        origin, other = listing.origins["train"], listing.origins[part]
        where = f"{origin} and {other}" if origin != other else f"train and {part} of {origin}"
        raise ValueError(
            f"Expected {where} to have no class name in common, but got {join_names(shared)}; "
            "an unseen class must stay unseen: move or rename these"
        )


def _twins(listing: Listing) -> list[str]:
    """Note the classes whose names differ in case or in Unicode characters only."""
    names = {name for classes in listing.parts.values() for name in classes}
    groups: dict[str, list[str]] = {}
    for name in sorted(names):
        groups.setdefault(normalize("NFC", name).casefold(), []).append(name)
    # Escaped, as both may look alike.
    twins = [" and ".join(ascii(name) for name in group) for group in groups.values() if group[1:]]
    if not twins:
        return []
    return [
        f"{len(twins)} class names in {listing.home} differ from another in case or Unicode form "
        f"only and count as other classes; rename or merge them if they are one: "
        f"{join_names(twins)}"
    ]


def _check_complete(
    name: str, listing: Listing, source: Source | None, allow_partial: bool
) -> list[str]:
    """Compare with the files on disk and the published sizes; a note if less is allowed."""
    problems = [*listing.problems, *_drop_missing(listing, source)]
    mismatches = source.mismatches(listing.parts) if source is not None else {}
    for part, text in mismatches.items():
        title = "query" if part == "test" and "gallery" in listing.parts else part
        problems.append(f"{title} ({listing.origins[part].relative_to(listing.home)}): {text}")
    if not problems:
        return []
    summary = f"Expected all of {name} in {listing.home}, but " + "; ".join(problems)
    if not allow_partial:
        raise ValueError(
            f"{summary}. Get the missing files (unpack the archive again), or go on with what is "
            "there: allow_partial=True, on the command line --allow-partial"
        )
    return [f"{summary}. Going on with what is there"]


def _drop(listing: Listing, is_good: Callable[[Path], bool]) -> list[Path]:
    """Take the files that are not good, and the classes left without any, out of ``parts``."""
    dropped: list[Path] = []
    for classes in listing.parts.values():
        for name, files in list(classes.items()):
            good: list[Path] = []
            for file in files:
                (good if is_good(file) else dropped).append(file)
            classes[name] = good
            if not good:
                del classes[name]
    return dropped


def _drop_missing(listing: Listing, source: Source | None) -> list[str]:
    """Take the images that are not on disk out of ``parts``; a sentence if there are any."""

    @cache  # one look into a folder, not one at every file
    def content(folder: Path) -> set[str]:
        return set(os.listdir(folder)) if folder.is_dir() else set()

    total = sum(len(files) for classes in listing.parts.values() for files in classes.values())
    dropped = _drop(listing, lambda file: file.name in content(file.parent))
    absent = [file.relative_to(listing.home).as_posix() for file in dropped]
    if not absent:
        return []
    if len(absent) < total:
        return [f"{len(absent)} of {total} listed images are missing: {join_names(absent)}"]
    if source is not None:
        raise source.missing(dropped[0])
    raise FileNotFoundError(
        f"Expected the images to lie in {listing.home}, but none of the {total} is there, "
        f"for example {absent[0]}"
    )


def _drop_broken(listing: Listing, skip_broken: bool) -> list[str]:
    """Take the files that can't be used out of ``parts``; return their names."""
    before = {part: dict(classes) for part, classes in listing.parts.items()}
    if not skip_broken:
        files = [file for c in before.values() for members in c.values() for file in members]
        unnamed = [str(file) for file in files if not _is_text(file, listing.home)]
        if unnamed:
            raise ValueError(
                f"Expected names of files in UTF-8, but got {join_names(unnamed)}; rename them, "
                "or leave them out: skip_broken=True, on the command line --skip-broken"
            )
        return []
    broken = _drop(listing, lambda file: _is_usable(file, listing.home))
    for part, classes in listing.parts.items():
        gone = [name for name in before[part] if name not in classes]
        # With a gallery, a class may have images on the other side.
        if gone and (part == "train" or "gallery" not in listing.parts):
            raise ValueError(
                f"Expected class {gone[0]!r} of {listing.origins[part]} to have images that can "
                f"be decoded, but all {len(before[part][gone[0]])} are broken; remove them to "
                "leave the class out"
            )
        if not classes:
            raise ValueError(f"Expected images of {part} that can be decoded, but all are broken")
    return [printable(file) for file in broken]


def _is_usable(file: Path, home: Path) -> bool:
    try:
        read_image(file)
    except BrokenImageError:
        return False
    return _is_text(file, home)


def _is_text(file: Path, home: Path) -> bool:
    """Return whether the name of a file in ``home`` is UTF-8."""
    try:
        str(file)[len(str(home)) :].encode()
    except UnicodeEncodeError:  # bytes that are no UTF-8, which Python smuggles in
        return False
    return True


def _draw_gallery(test: Classes, seed: int) -> tuple[Classes, Classes]:
    """Draw one image of every class for the gallery; the others are the queries.

    The draw depends on names only, not on the order in which a file lists them.
    """
    generator = random.Random(seed)
    query: Classes = {}
    gallery: Classes = {}
    for name in sorted(test):
        files = sorted(test[name])
        gallery[name] = [files.pop(generator.randrange(len(files)))]
        if files:
            query[name] = files
    return query, gallery


def _unmatched(listing: Listing) -> list[str]:
    """Note the classes in which no image has another one to be near to."""
    query, gallery = listing.parts["test"], listing.parts.get("gallery", {})
    sizes = {name: len(query.get(name, [])) + len(gallery.get(name, [])) for name in query}
    sizes |= {name: len(files) for name, files in gallery.items() if name not in query}
    single = [name for name, files in listing.parts["train"].items() if len(files) == 1]
    single += [name for name, size in sizes.items() if size == 1]
    notes = []
    if single:
        notes.append(
            f"{len(single)} classes in {listing.home} have one image only: {join_names(single)}"
        )
    absent = [name for name, files in query.items() if name not in gallery and len(files) > 1]
    if absent and "gallery" in listing.parts:
        notes.append(
            f"{len(absent)} classes in {listing.home} have queries but nothing in the gallery, so "
            f"these queries count for no metric: {join_names(absent)}"
        )
    return notes


def _draw_validation(names: list[str], fraction: float, seed: int) -> list[str]:
    """Draw the classes to hold out, in alphabetical order: ``fraction`` of them, but 2 at least."""
    if fraction == 0:
        return []
    count = max(2, round(fraction * len(names)))
    if len(names) - count < 2:
        few = (
            "are too few to hold any out" if len(names) < 4 else f"without {count} are fewer than 2"
        )
        raise ValueError(
            f"Expected argument `val_fraction` to leave 2 train classes or more, got {fraction}: "
            f"{len(names)} classes {few}; 0 (--val-fraction 0) goes without validation"
        )
    return sorted(random.Random(seed).sample(names, count))


def _dataset(home: Path, classes: Classes, names: list[str]) -> ImageDataset:
    files = [file for members in classes.values() for file in members]
    ids = {name: i for i, name in enumerate(names)}
    labels = [ids[name] for name, members in classes.items() for _ in members]
    # Relative names, so that the split's digest is the same wherever the folder lies.
    paths = [file.relative_to(home).as_posix() for file in files]
    return ImageDataset(files, torch.tensor(labels), names, paths=paths)
