"""Read files that list images line by line, and collect what they say part by part."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from pathlib import Path

from bgl.datasets.base import Splits
from bgl.datasets.figures import mismatches
from bgl.datasets.sources import SOURCES, missing
from bgl.datasets.splits import Classes, build_splits, check_disjoint, listed


class Listing:
    """Which images of which classes the files of a dataset put into which part.

    Args:
        name: the dataset's name.
        home: its folder. Every image has to lie in it.
        sources: the file that lists each part; its keys are the parts.

    Attributes:
        parts: image files by class, by part.
        shortfalls: sentences on what is not there, found while reading; :meth:`splits` raises
            them as an error, or warns of them.
    """

    def __init__(self, name: str, home: Path, sources: dict[str, Path]) -> None:
        self.name = name
        self.home = Path(os.path.abspath(home))
        self.sources = sources
        self.parts: dict[str, Classes] = {part: {} for part in sources}
        self.shortfalls: list[str] = []
        self._repeated: list[str] = []
        self._seen: dict[Path, tuple[str, str, str]] = {}

    def add(self, part: str, label: str, file: str, where: str) -> None:
        """Note an image.

        Args:
            part: one of ``parts``.
            label: its class.
            file: its path, relative to ``home``.
            where: the file and line that say so, for an error message.

        Raises:
            ValueError: if the path leads out of ``home``, or the image was noted before in
                another part or class.
        """
        path = inside(self.home, file, where)
        part_before, label_before, where_before = self._seen.setdefault(path, (part, label, where))
        if where_before == where:
            self.parts[part].setdefault(label, []).append(path)
        elif (part_before, label_before) == (part, label):
            self._repeated.append(f"{file} ({where})")
        else:
            raise ValueError(
                f"{where}: expected every image once, but {file} is in {part} as class {label!r} "
                f"here and in {part_before} as class {label_before!r} in {where_before}; remove "
                "the wrong one of the two"
            )

    def splits(
        self,
        val_fraction: float,
        seed: int,
        skip_broken: bool,
        allow_partial: bool,
        draw_gallery: bool = False,
    ) -> Splits:
        """Compare with the files on disk and the known figures; make the datasets.

        Warns:
            UserWarning: once with the lines that repeat another, once with all that is not as
                expected if ``allow_partial`` lets it pass.

        Raises:
            FileNotFoundError: if none of the images is there.
            ValueError: if images are missing or the numbers are not the known ones, unless
                ``allow_partial``; and as :func:`~bgl.datasets.splits.build_splits`.
        """
        if self._repeated:
            warnings.warn(
                f"{len(self._repeated)} lines repeat an image of the same class, which counts "
                f"once; remove them: {listed(self._repeated)}",
                UserWarning,
                stacklevel=3,
            )
        check_disjoint(self.parts, self.sources)  # whatever the counts, nothing excuses that
        problems = [*self.shortfalls, *self._drop_missing()]
        for part, text in mismatches(self.name, self.parts).items():
            title = "query" if part == "test" and "gallery" in self.parts else part
            source = self.sources[part].relative_to(self.home)
            problems.append(f"{title} ({source}): {text}")
        if problems:
            summary = f"Expected all of {self.name} in {self.home}, but " + "; ".join(problems)
            if not allow_partial:
                raise ValueError(
                    f"{summary}. Get the missing files (unpack the archive again), or go on with "
                    "what is there: allow_partial=True, on the command line --allow-partial"
                )
            warnings.warn(f"{summary}. Going on with what is there", UserWarning, stacklevel=3)
        return build_splits(
            self.name,
            self.home,
            self.parts,
            self.sources,
            val_fraction,
            seed,
            skip_broken,
            draw_gallery,
        )

    def _drop_missing(self) -> list[str]:
        """Take the images that are not on disk out of ``parts``; a sentence if there are any."""
        contents: dict[Path, set[str]] = {}  # one look into a folder, not one at every file
        absent: list[str] = []
        total = 0
        for classes in self.parts.values():
            for label, files in list(classes.items()):
                there = []
                for file in files:
                    if file.parent not in contents:
                        is_folder = file.parent.is_dir()
                        contents[file.parent] = set(os.listdir(file.parent)) if is_folder else set()
                    if file.name in contents[file.parent]:
                        there.append(file)
                    else:
                        absent.append(file.relative_to(self.home).as_posix())
                total += len(files)
                classes[label] = there
                if not there:
                    del classes[label]
        if not absent:
            return []
        if len(absent) == total:
            if self.name in SOURCES:
                raise missing(self.name, self.home / absent[0])
            raise FileNotFoundError(
                f"Expected the images to lie in {self.home}, but none of the {total} is there, "
                f"for example {absent[0]}"
            )
        return [f"{len(absent)} of {total} listed images are missing: {listed(absent)}"]


def inside(home: Path, file: str, where: str) -> Path:
    """``home / file`` without ``.`` and ``..``.

    Raises:
        ValueError: if that is not inside ``home``, the name is empty, or it has a null character.
    """
    base = os.path.join(home, "")
    path = os.path.normpath(os.path.join(home, file))
    if not file or "\0" in file or not path.startswith(base):
        raise ValueError(
            f"{where}: expected the path of a file in {home}, relative to that folder, but got "
            f"{file!r}, which leads out of it"
        )
    return Path(path)


def read_rows(path: Path, columns: tuple[str, ...], skip: int = 0) -> Iterator[tuple[str, ...]]:
    """The lines of a text file: where each is, then its columns. Blank lines are left out.

    Args:
        path: a text file whose columns are separated by blanks.
        columns: what is in the columns, for an error message.
        skip: number of lines before the first to read.

    Raises:
        ValueError: if a line has more or fewer columns, or the file is no text or has no lines.
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
    """The lines of a text file.

    Raises:
        ValueError: if it is no text in UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"Expected {path} to be a text file in UTF-8, but {error}") from error


def to_int(text: str, column: str, where: str, low: int = 0, high: int | None = None) -> int:
    """``text`` as an integer from ``low`` to ``high``.

    Raises:
        ValueError: if it is none; ``column`` and ``where`` are named.
    """
    value = int(text) if text.isascii() and text.isdecimal() else -1
    if value < low or (high is not None and value > high):
        bounds = f"≥ {low}" if high is None else f"from {low} to {high}"
        raise ValueError(f"{where}: expected {column} to be an integer {bounds}, but got {text!r}")
    return value
