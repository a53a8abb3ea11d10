"""From a listing to the parts of a benchmark: what all datasets have in common."""

from __future__ import annotations

import os
import random
import warnings
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import combinations
from pathlib import Path
from unicodedata import normalize

import torch

from bgl._checks import check_int, check_real
from bgl.datasets.base import ImageDataset, Splits
from bgl.datasets.decoding import broken_images
from bgl.datasets.listing import Classes, Listing, counted, join_names
from bgl.datasets.source import Source
from bgl.images.reading import printable

TEST_SHARE = 0.25  # of the classes, where nothing says which are the test set
VAL_SHARE = 0.25  # of the others, where none are given
CHECKED = 10_000  # images of one's own are all decoded at the start up to here: a few seconds


@dataclass(frozen=True)
class Problem:
    """What keeps data from being used, and the option of ``load_dataset`` that goes on."""

    text: str
    option: str | None = None


def build_splits(
    name: str,
    listing: Listing,
    source: Source | None = None,
    *,
    val_fraction: float = VAL_SHARE,
    seed: int = 0,
    skip_broken: bool = False,
    allow_partial: bool = False,
    resplit: bool = False,
) -> Splits:
    """Check a listing, draw the classes of parts that it does not give, and make the datasets.

    All problems are found before any is told.

    Args:
        name: The dataset's name.
        listing: What is in which part.
        source: What is known of a public dataset.
        val_fraction, seed, skip_broken, allow_partial, resplit: See
            :func:`~bgl.datasets.load_dataset`.

    Warns:
        UserWarning: See :func:`~bgl.datasets.load_dataset`.

    Raises:
        FileNotFoundError: If none of the images is there.
        ValueError: See :func:`~bgl.datasets.load_dataset`.
    """
    check_real(val_fraction, "val_fraction", 0.0, 1.0)
    check_int(seed, "seed", 0)
    repeats = "lines repeat an image of the same class, which counts once; remove them"
    notes = [*listing.notes, *counted(listing.repeated, repeats)]
    if resplit:
        listing.pool()
    problems = _shared_names_problems(listing, source)
    notes += alike_names(listing)
    incomplete = _incomplete(name, listing, source)
    if incomplete is not None and allow_partial:
        notes.append(f"{incomplete}. Going on with what is there")
    elif incomplete is not None:
        advice = "Get the missing files (unpack the archive again), or go on with what is there"
        problems.append(Problem(f"{incomplete}. {advice}", "allow_partial"))
    _check_not_empty(listing)
    files = listing.files
    broken = dict.fromkeys((f for f in files if _unnamed(f, listing.home)), "its name is not UTF-8")
    if skip_broken or (source is None and len(files) <= CHECKED):
        broken = {**broken_images(files), **broken}
    if skip_broken:
        notes += _drop_broken(listing, broken)
    elif broken:
        problems.append(_broken_problem(broken, len(files)))
    _raise_all(problems)
    parts = listing.parts
    test_names, val_names = draw(list(parts["train"]), val_fraction, seed, parts)
    if test_names:
        parts["test"] = {name: parts["train"].pop(name) for name in test_names}
    elif source is not None and source.draws_gallery:
        parts["test"], parts["gallery"] = _draw_gallery(parts["test"], seed)
    notes += _unmatched(listing)
    if val_names:
        parts["val"] = {name: parts["train"].pop(name) for name in val_names}
    train, val, test, gallery = (
        parts.get(part, {}) for part in ("train", "val", "test", "gallery")
    )
    if "test" not in listing.origins:
        notes.append(
            f"{listing.home} says nothing of a test set: its classes are split into {len(train)} "
            f"to train on, {len(val)} for validation and {len(test)} for test"
        )
    for note in notes:
        warnings.warn(note, UserWarning, stacklevel=3)
    # Query and gallery share the numbers of their classes.
    test_names = list(dict.fromkeys([*test, *gallery]))
    return Splits(
        name,
        _dataset(listing.home, train, list(train)),
        _dataset(listing.home, val, list(val)) if val else None,
        _dataset(listing.home, test, test_names),
        _dataset(listing.home, gallery, test_names) if "gallery" in parts else None,
        tuple(printable(file) for file in broken),
    )


def split_by_class(
    images: ImageDataset, name: str = "images", *, val_fraction: float = VAL_SHARE, seed: int = 0
) -> Splits:
    """Draw the classes of validation and test from one dataset.

    Args:
        images: All images.
        name: What to call the data.
        val_fraction: Share of the classes held out for validation, of those that are left by the
            quarter for test: at least 2. 0: none.
        seed: A non-negative integer.

    Raises:
        ValueError: If there are fewer than 2 classes for a part.

    Example:
        >>> labels = torch.arange(16) // 2
        >>> images = torch.zeros(16, 3, 4, 4, dtype=torch.uint8)
        >>> splits = split_by_class(ImageDataset(images, labels, list("abcdefgh")))
        >>> [part.num_classes for part in splits.parts().values()]
        [4, 2, 2]
    """
    check_real(val_fraction, "val_fraction", 0.0, 1.0)
    check_int(seed, "seed", 0)
    ids = {name: i for i, name in enumerate(images.class_names)}
    test, val = draw(list(ids), val_fraction, seed)
    train = [name for name in ids if name not in {*test, *val}]

    def part(names: Sequence[str]) -> ImageDataset:
        return images.select_classes([ids[name] for name in names])

    return Splits(
        name,
        part(train),
        part(val) if val else None,
        part(test),
    )


def _raise_all(problems: list[Problem]) -> None:
    """Raise one ValueError that names every problem and what goes on."""
    if not problems:
        return
    text = problems[0].text
    if len(problems) > 1:
        text = "; ".join(f"({i}) {problem.text}" for i, problem in enumerate(problems, start=1))
        text = f"Found {len(problems)} problems: {text}"
    options = list(dict.fromkeys(problem.option for problem in problems if problem.option))
    if options:
        arguments = ", ".join(f"{name}=True" for name in options)
        words = " ".join("--" + name.replace("_", "-") for name in options)
        text += f": {arguments}, on the command line {words}"
    raise ValueError(text)


def shared_names(listing: Listing) -> dict[tuple[str, str], list[str]]:
    """Find the class names that two parts share, by the two; query and gallery may.

    One name may be written with different Unicode characters (é, or e and an accent).
    """
    found = {}
    for one, other in combinations(listing.parts, 2):
        names = {normalize("NFC", name) for name in listing.parts[one]}
        shared = sorted(name for name in listing.parts[other] if normalize("NFC", name) in names)
        if shared and (one, other) != ("test", "gallery"):
            found[one, other] = shared
    return found


def _shared_names_problems(listing: Listing, source: Source | None) -> list[Problem]:
    problems = []
    for (one, other), shared in shared_names(listing).items():
        origin, second = listing.origins[one], listing.origins[other]
        where = f"{origin} and {second}" if origin != second else f"{one} and {other} of {origin}"
        text = (
            f"Expected {where} to have no class name in common, but got {join_names(shared)}; "
            "an unseen class must stay unseen: move or rename these"
        )
        if source is None:
            text += ", or pool all images and split them anew by class"
        problems.append(Problem(text, "resplit" if source is None else None))
    return problems


def _check_not_empty(listing: Listing) -> None:
    for part, classes in listing.parts.items():
        if not classes:
            raise ValueError(
                f"Expected {listing.origins[part]} to have images for {part}, but got none"
            )


def alike_names(listing: Listing) -> list[str]:
    """Note the classes whose names differ in case or in Unicode characters only."""
    groups: dict[str, list[str]] = {}
    for name in sorted(listing.class_names):
        groups.setdefault(normalize("NFC", name).casefold(), []).append(name)
    # Escaped, as both may look alike.
    twins = [" and ".join(ascii(name) for name in group) for group in groups.values() if group[1:]]
    return counted(
        twins,
        f"class names in {listing.home} differ from another in case or Unicode form only and count "
        "as other classes; rename or merge them if they are one",
    )


def _incomplete(name: str, listing: Listing, source: Source | None) -> str | None:
    """Compare with the files on disk and the published sizes; a sentence if there is less."""
    problems = [*listing.problems, *_drop_missing(listing, source)]
    mismatches = source.mismatches(listing.parts) if source is not None else {}
    for part, text in mismatches.items():
        title = "query" if part == "test" and "gallery" in listing.parts else part
        problems.append(f"{title} ({listing.origins[part].relative_to(listing.home)}): {text}")
    if not problems:
        return None
    return f"Expected all of {name} in {listing.home}, but " + "; ".join(problems)


def _drop_missing(listing: Listing, source: Source | None) -> list[str]:
    """Take the images that are not on disk out of ``parts``; a sentence if there are any."""

    @cache  # one look into a folder, not one at every file
    def content(folder: Path) -> set[str]:
        return set(os.listdir(folder)) if folder.is_dir() else set()

    total = len(listing.files)
    dropped = listing.drop(lambda file: file.name in content(file.parent))
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


def _drop_broken(listing: Listing, broken: dict[Path, str]) -> list[str]:
    """Take files that can't be used, and classes without others, out of ``parts``; notes on it."""
    if not broken:
        return []
    before = listing.class_names
    listing.drop(lambda file: file not in broken)
    _check_not_empty(listing)
    notes = [
        f"Left out {len(broken)} images in {listing.home} that can't be decoded: "
        f"{join_names([str(file) for file in broken])}"
    ]
    if gone := sorted(before - listing.class_names):
        notes.append(
            f"Left out {len(gone)} classes in {listing.home} with no other images: "
            f"{join_names(gone)}"
        )
    return notes


def _broken_problem(broken: dict[Path, str], total: int) -> Problem:
    """Name the files that can't be used, those with one reason together."""
    reasons: dict[str, list[str]] = {}
    for file, reason in broken.items():
        reasons.setdefault(reason, []).append(str(file))
    named = "; ".join(f"{join_names(files, 5)} ({reason})" for reason, files in reasons.items())
    return Problem(
        f"Expected images that can be decoded, with names in UTF-8, but {len(broken)} of {total} "
        f"cannot be used: {named}; mend them, or leave them out",
        "skip_broken",
    )


def _unnamed(file: Path, home: Path) -> bool:
    """Return whether the name of a file in ``home`` has bytes that are no UTF-8."""
    try:
        str(file)[len(str(home)) :].encode()
    except UnicodeEncodeError:  # which Python smuggles in
        return True
    return False


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
    learned = {**listing.parts["train"], **listing.parts.get("val", {})}
    single = [name for name, files in learned.items() if len(files) == 1]
    single += [name for name, size in sizes.items() if size == 1]
    absent = [name for name, files in query.items() if name not in gallery and len(files) > 1]
    return counted(single, f"classes in {listing.home} have one image only") + counted(
        absent if "gallery" in listing.parts else [],
        f"classes in {listing.home} have queries but nothing in the gallery, so these queries "
        "count for no metric",
    )


def draw(
    names: Sequence[str], val_fraction: float, seed: int, given: Collection[str] = ()
) -> tuple[list[str], list[str]]:
    """Draw the classes of test and of validation, unless these parts are given.

    Raises:
        ValueError: If there are too few to draw from.
    """
    validated = bool(val_fraction) and "val" not in given
    test: list[str] = []
    if "test" not in given:
        least = 6 if validated else 4
        if len(names) < least:
            parts = (
                "train on, for validation and for test" if validated else "train on and for test"
            )
            without = validated and len(names) >= 4
            raise ValueError(
                f"Expected {least} classes or more, to have 2 each to {parts}, but got {len(names)}"
                + ("; 4 do without validation (--val-fraction 0)" if without else ": add classes")
            )
        test = _draw_classes(names, TEST_SHARE, seed)
    rest = sorted(set(names) - set(test))
    return test, _draw_classes(rest, val_fraction, seed) if validated else []


def _draw_classes(names: Sequence[str], fraction: float, seed: int) -> list[str]:
    """Draw the classes to hold out, in alphabetical order: ``fraction`` of them, but 2 at least.

    Raises:
        ValueError: If fewer than 2 classes stay.
    """
    count = max(2, round(fraction * len(names)))
    if len(names) - count < 2:
        few = (
            "are too few to hold any out" if len(names) < 4 else f"without {count} are fewer than 2"
        )
        raise ValueError(
            f"Expected argument `val_fraction` to leave 2 train classes or more, got {fraction}: "
            f"{len(names)} classes {few}; 0 (--val-fraction 0) goes without validation"
        )
    return sorted(random.Random(seed).sample(sorted(names), count))


def _dataset(home: Path, classes: Classes, names: list[str]) -> ImageDataset:
    files = [file for members in classes.values() for file in members]
    ids = {name: i for i, name in enumerate(names)}
    labels = [ids[name] for name, members in classes.items() for _ in members]
    # Relative names, so that the split's digest is the same wherever the folder lies.
    paths = [file.relative_to(home).as_posix() for file in files]
    return ImageDataset(files, torch.tensor(labels), names, paths=paths)
