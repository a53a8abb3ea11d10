"""From the files of each class to the parts of a benchmark: what all datasets have in common."""

from __future__ import annotations

import random
import warnings
from pathlib import Path

import torch

from bgl._checks import check_int, check_real
from bgl.datasets.base import ImageDataset, Splits
from bgl.images import BrokenImageError, read_image

#: The image files of every class of a part, by the class's name.
Classes = dict[str, list[Path]]


def build_splits(
    name: str,
    root: Path,
    parts: dict[str, Classes],
    sources: dict[str, Path],
    val_fraction: float = 0.25,
    seed: int = 0,
    skip_broken: bool = False,
    draw_gallery: bool = False,
) -> Splits:
    """Check the classes of each part, hold some of them out for validation, make the datasets.

    Args:
        name: the dataset's name.
        root: the folder that all files are in; their names in ``paths`` are relative to it.
        parts: the classes of "train", "test" (the queries, where there is a gallery) and, where
            there is one, "gallery".
        sources: the file or folder that each part was read from, for error messages.
        val_fraction: share of the train classes held out for validation, drawn with ``seed``: at
            least 2 classes, and at least 2 stay. 0 leaves ``val`` None.
        seed: a non-negative integer.
        skip_broken: decode every image once at the start and leave out those that fail, with one
            warning and in ``skipped`` of the result.
        draw_gallery: move one image of each test class, drawn with ``seed``, to the gallery.

    Warns:
        UserWarning: with the broken images that were left out, with the classes that have one
            image only, and with those that have queries but nothing in the gallery.

    Raises:
        ValueError: if a part is empty, a class is in train and in another part, all images of a
            class are broken, or there are too few train classes for ``val_fraction``.
    """
    check_real(val_fraction, "val_fraction", 0.0, 1.0)
    check_int(seed, "seed", 0)
    parts = {part: dict(classes) for part, classes in parts.items()}
    for part, classes in parts.items():
        if not classes:
            raise ValueError(f"Expected {sources[part]} to have images for {part}, but got none")
    check_disjoint(parts, sources)
    skipped = _drop_broken(root, parts, sources) if skip_broken else ()
    if draw_gallery:
        parts["test"], parts["gallery"] = _draw_gallery(parts["test"], seed)
    _warn_of_lonely(root, parts)
    train = parts["train"]
    val = {drawn: train.pop(drawn) for drawn in _draw_validation(sorted(train), val_fraction, seed)}
    gallery = parts.get("gallery")
    # Query and gallery share the numbers of their classes.
    test_names = list(dict.fromkeys([*parts["test"], *(gallery or {})]))
    return Splits(
        name,
        _dataset(root, train, list(train)),
        _dataset(root, val, list(val)) if val else None,
        _dataset(root, parts["test"], test_names),
        _dataset(root, gallery, test_names) if gallery is not None else None,
        skipped,
    )


def listed(names: list[str], limit: int = 20) -> str:
    """The names, or the first ``limit`` of them and how many more there are.

    >>> listed(["a", "b", "c"], 2)
    'a, b and 1 more'
    """
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def check_disjoint(parts: dict[str, Classes], sources: dict[str, Path]) -> None:
    """Raise a ValueError with the names of the train classes that another part has as well."""
    for part, classes in parts.items():
        if part == "train":
            continue
        shared = sorted(parts["train"].keys() & classes.keys())
        if not shared:
            continue
        train, other = sources["train"], sources[part]
        where = f"{train} and {other}" if train != other else f"train and {part} of {train}"
        raise ValueError(
            f"Expected {where} to have no class name in common, but got {listed(shared)}; "
            "an unseen class must stay unseen: move or rename these"
        )


def _drop_broken(
    root: Path, parts: dict[str, Classes], sources: dict[str, Path]
) -> tuple[str, ...]:
    """Take out of ``parts`` the files that can't be decoded; return their names."""
    broken: list[str] = []
    for part, classes in parts.items():
        for name, files in list(classes.items()):
            readable = [_is_readable(file) for file in files]
            good = [file for file, fine in zip(files, readable, strict=True) if fine]
            broken += [str(file) for file, fine in zip(files, readable, strict=True) if not fine]
            classes[name] = good
            if good:
                continue
            if part != "train" and "gallery" in parts:
                del classes[name]  # the class may have images on the other side
                continue
            raise ValueError(
                f"Expected class {name!r} of {sources[part]} to have images that can be decoded, "
                f"but all {len(files)} are broken; remove them to leave the class out"
            )
        if not classes:
            raise ValueError(f"Expected images of {part} that can be decoded, but all are broken")
    if broken:
        warnings.warn(
            f"Left out {len(broken)} images in {root} that can't be decoded: {listed(broken)}",
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


def _draw_gallery(test: Classes, seed: int) -> tuple[Classes, Classes]:
    """One image of every class for the gallery; the others are the queries.

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


def _warn_of_lonely(root: Path, parts: dict[str, Classes]) -> None:
    """Warn of the classes in which no image has another one to be near to."""
    query, gallery = parts["test"], parts.get("gallery")
    lonely = [name for name, files in parts["train"].items() if len(files) == 1]
    names = dict.fromkeys([*query, *(gallery or {})])
    lonely += [
        name for name in names if len(query.get(name, [])) + len((gallery or {}).get(name, [])) == 1
    ]
    if lonely:
        warnings.warn(
            f"{len(lonely)} classes in {root} have one image only: {listed(lonely)}",
            UserWarning,
            stacklevel=3,
        )
    if gallery is None:
        return
    absent = [name for name, files in query.items() if name not in gallery and len(files) > 1]
    if absent:
        warnings.warn(
            f"{len(absent)} classes in {root} have queries but nothing in the gallery, so these "
            f"queries count for no metric: {listed(absent)}",
            UserWarning,
            stacklevel=3,
        )


def _draw_validation(names: list[str], fraction: float, seed: int) -> list[str]:
    """The classes to hold out, in alphabetical order: ``fraction`` of them, but 2 at least."""
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


def _dataset(root: Path, classes: Classes, names: list[str]) -> ImageDataset:
    files = [file for members in classes.values() for file in members]
    ids = {name: i for i, name in enumerate(names)}
    labels = [ids[name] for name, members in classes.items() for _ in members]
    # Relative names, so that the split's digest is the same wherever the folder lies.
    paths = [file.relative_to(root).as_posix() for file in files]
    return ImageDataset(files, torch.tensor(labels), names, paths=paths)
