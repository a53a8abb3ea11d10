"""Which images of which classes are in which part, and readers of the files that say so."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from bgl.images.reading import printable

#: The image files of every class of a part, by the class's name.
Classes = dict[str, list[Path]]


class Listing:
    """Which images of which classes are in which part of a dataset.

    Args:
        home: The dataset's folder. Every image has to lie in it.
        origins: The file or folder that lists each part; its keys are the parts: "train" and,
            where they are given, "val", "test" (the queries, if there is a gallery) and
            "gallery". Validation and test classes that are not given are drawn from "train".

    Attributes:
        parts: Image files by class, by part.
        problems: Sentences on what is not there; an error unless ``allow_partial``.
        notes: Sentences that the user is warned with.
        repeated: Images that are listed more than once, always in the same part and class.
    """

    def __init__(self, home: Path, origins: dict[str, Path]) -> None:
        self.home = Path(os.path.abspath(home))
        self.origins = origins
        self.parts: dict[str, Classes] = {part: {} for part in origins}
        self.problems: list[str] = []
        self.notes: list[str] = []
        self.repeated: list[str] = []
        self._seen: dict[Path, tuple[str, str, str]] = {}

    @property
    def files(self) -> list[Path]:
        """The images of all parts."""
        return [f for part in self.parts.values() for files in part.values() for f in files]

    @property
    def class_names(self) -> set[str]:
        """The names of the classes of all parts."""
        return {name for part in self.parts.values() for name in part}

    def drop(self, is_good: Callable[[Path], bool]) -> list[Path]:
        """Take the files that are not good, and the classes left without any, out of ``parts``."""
        dropped = [file for file in self.files if not is_good(file)]
        bad = set(dropped)
        for part, classes in self.parts.items():
            good = {name: [f for f in files if f not in bad] for name, files in classes.items()}
            self.parts[part] = {name: files for name, files in good.items() if files}
        return dropped

    def pool(self) -> None:
        """Put the images of all parts into "train", as if nothing were said of the parts."""
        pooled: dict[str, dict[Path, None]] = {}
        for classes in self.parts.values():
            for name, files in classes.items():
                pooled.setdefault(name, {}).update(dict.fromkeys(files))
        self.parts = {"train": {name: list(files) for name, files in pooled.items()}}
        self.origins = {"train": self.home}

    def add(self, part: str, label: str, file: str, where: str) -> None:
        """Add an image.

        Args:
            part: One of ``parts``.
            label: Its class.
            file: Its path, relative to ``home``.
            where: The file and line that say so, for an error message.

        Raises:
            ValueError: If the path leads out of ``home``, or the image was added before to
                another part or class.
        """
        whole = os.path.normpath(os.path.join(self.home, file))
        if not file or "\0" in file or not whole.startswith(os.path.join(self.home, "")):
            raise ValueError(
                f"{where}: expected the path of a file in {self.home}, relative to that folder, "
                f"but got {file!r}, which leads out of it: pass the folder above all images as "
                "`root` (--data-root)"
            )
        path = Path(whole)
        part_before, label_before, where_before = self._seen.setdefault(path, (part, label, where))
        if where_before == where:
            self.parts[part].setdefault(label, []).append(path)
        elif (part_before, label_before) == (part, label):
            self.repeated.append(f"{file} ({where})")
        else:
            raise ValueError(
                f"{where}: expected every image once, but {file} is in {part} as class {label!r} "
                f"here and in {part_before} as class {label_before!r} in {where_before}; remove "
                "the wrong one of the two"
            )


def join_names(names: list[str], limit: int = 20) -> str:
    """Join the names, or the first ``limit`` of them and how many more there are.

    Example:
        >>> join_names(["a", "b", "c"], 2)
        'a, b and 1 more'
    """
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(printable(name) for name in names[:limit]) + more


def counted(names: list[str], what: str) -> list[str]:
    """Make a note of some names, if there are any: how many, ``what`` of them, and which.

    Example:
        >>> counted(["a", "b"], "classes are small"), counted([], "classes are small")
        (['2 classes are small: a, b'], [])
    """
    return [f"{len(names)} {what}: {join_names(names)}"] if names else []


def read_rows(path: Path, columns: tuple[str, ...], skip: int = 0) -> Iterator[tuple[str, ...]]:
    """Yield the lines of a text file: where each is, then its columns. Blank lines are left out.

    Args:
        path: A text file whose columns are separated by blanks.
        columns: What is in the columns, for an error message.
        skip: Number of lines before the first to read.

    Raises:
        ValueError: If a line has more or fewer columns, or the file is no text or has no lines.
    """
    count = 0
    for number, line in enumerate(read_lines(path), start=1):
        fields = line.split()
        if number <= skip or not fields:
            continue
        where = f"{path} line {number}"
        if len(fields) != len(columns):
            raise ValueError(
                f"{where}: expected {len(columns)} columns ({', '.join(columns)}), but got "
                f"{len(fields)} in {line!r}; the file is damaged or cut off"
            )
        count += 1
        yield where, *fields
    if not count:
        raise ValueError(f"Expected lines ({', '.join(columns)}) in {path}, but it has none")


def read_lines(path: Path) -> list[str]:
    """Read the lines of a text file.

    Raises:
        ValueError: If it is no text in UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"Expected {path} to be a text file in UTF-8, but {error}") from error


def check_header(path: Path, number: int, columns: tuple[str, ...]) -> None:
    """Raise a ValueError unless line ``number`` of a text file names the columns."""
    line = (read_lines(path)[number - 1 :] or [""])[0]
    if tuple(line.split()) != columns:
        raise ValueError(
            f"{path} line {number}: expected {' '.join(columns)}, but got {line!r}; the file is "
            "damaged or not the original one"
        )


def to_int(text: str, column: str, where: str, low: int = 0, high: int | None = None) -> int:
    """Convert ``text`` to an integer from ``low`` to ``high``.

    Raises:
        ValueError: If it is none; ``column`` and ``where`` are named.
    """
    value = int(text) if text.isascii() and text.isdecimal() else -1
    if value < low or (high is not None and value > high):
        bounds = f"≥ {low}" if high is None else f"from {low} to {high}"
        raise ValueError(f"{where}: expected {column} to be an integer {bounds}, but got {text!r}")
    return value
