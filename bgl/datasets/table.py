"""Your own images: a CSV file with a line for each::

    path,label,split
    images/a/1.jpg,a,train
    images/b/1.jpg,b,test

``path`` and ``label`` are enough: without ``split`` the classes of the parts are drawn. ``split``
is "train", "validation" or "test". Where there is no line of test, "validation" is the test set,
as in the tables of open-metric-learning; otherwise it is what the epoch is chosen on.

``is_query`` and ``is_gallery``, that library's other columns, are True or False in the lines of
the test set. Without them, and where all are both, every image of the test set looks for the
others; if none is both, the queries are ``test`` and the others ``gallery``. Labels are any text.
Further columns are ignored.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from bgl.datasets.listing import Listing

_COLUMNS = ("path", "label")
_OPTIONAL = ("split", "is_query", "is_gallery")
_SPLITS = {"train": "train", "validation": "val", "val": "val", "test": "test"}
_UNUSED = ("x_1", "x_2", "y_1", "y_2", "sequence")
_FLAGS = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}
_EMPTY = {"", "none", "nan", "null"}


def read_table(table: str | Path, root: str | Path | None = None) -> Listing:
    """Read a table.

    Args:
        table: A CSV file in UTF-8 with a header; commas, semicolons or tabs separate its columns.
        root: Folder that the paths are relative to and that all images lie in; by default the
            table's own.

    Raises:
        FileNotFoundError: If the table or the root is missing.
        ValueError: If a column is missing or a value is not as above (the message names line and
            column), or an image is listed with two labels or parts.
    """
    table = Path(table)
    if not table.is_file():
        raise FileNotFoundError(f"Expected argument `table` to be a CSV file, but got {table}")
    home = Path(root) if root is not None else table.parent
    if not home.is_dir():
        raise FileNotFoundError(
            f"Expected argument `root` (--data-root) to be a folder, but got {home}"
        )
    notes: list[str] = []
    lines = [_parse(row, where) for where, row in _rows(table, notes)]
    splits = {line.split for line in lines}
    held_out = "test" if "test" in splits else "val"
    tested = [line for line in lines if line.split == held_out]
    if all(line.query is None and line.gallery is None for line in tested):
        tested = [line._replace(query=True, gallery=True) for line in tested]
    for line in tested:
        _check_flags(line)
    both = [line for line in tested if line.query and line.gallery]
    if both and len(both) < len(tested):
        raise ValueError(
            f"{both[0].where}, columns `is_query` and `is_gallery`: expected all lines of the test "
            f"set to be both or none, but {len(both)} of {len(tested)} are both; a query that is "
            "in another's gallery would find itself"
        )
    parts = ["train", *(["val"] if splits >= {"val", "test"} else [])]
    if tested:
        parts += ["test"] if both else ["test", "gallery"]
    listing = Listing(home, dict.fromkeys(parts, table))
    listing.notes = notes
    for line in lines:
        if line.split == held_out:
            continue
        if line.query or line.gallery:
            raise ValueError(
                f"{line.where}, columns `is_query` and `is_gallery`: expected them to be empty or "
                f"False where `split` is {'train' if line.split == 'train' else 'validation'}"
            )
        listing.add(line.split, line.label, line.path, line.where)
    for line in tested:
        listing.add("test" if line.query else "gallery", line.label, line.path, line.where)
    return listing


class _Line(NamedTuple):
    where: str
    split: str
    path: str
    label: str
    query: bool | None
    gallery: bool | None


def _parse(row: dict[str, str], where: str) -> _Line:
    split = _SPLITS.get(row.get("split", "train").strip().lower())
    if split is None:
        raise ValueError(
            f"{where}, column `split`: expected train, validation or test, but got {row['split']!r}"
        )
    path, label = (_filled(row, column, where) for column in _COLUMNS)
    query, gallery = (_flag(row, column, where) for column in ("is_query", "is_gallery"))
    return _Line(where, split, path, label, query, gallery)


def _check_flags(line: _Line) -> None:
    for column, flag in (("is_query", line.query), ("is_gallery", line.gallery)):
        if flag is None:
            raise ValueError(
                f"{line.where}, column `{column}`: expected True or False, as in other lines of "
                "the test set, but it is empty"
            )
    if not line.query and not line.gallery:
        raise ValueError(
            f"{line.where}, columns `is_query` and `is_gallery`: expected one of them to be True "
            "in the test set; remove the line if it is neither"
        )


def _rows(table: Path, notes: list[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield where each line of the table is, and the line as a dictionary."""
    try:
        with table.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, delimiter=_separator(table), strict=True)
            header = [column.strip() for column in next(reader, [])]
            _check_header(table, header)
            unused = [column for column in _UNUSED if column in header]
            if unused:
                notes.append(
                    f"{table}: the columns {', '.join(unused)} are not used; images are taken "
                    "whole and each counts for itself"
                )
            for fields in reader:
                where = f"{table} line {reader.line_num}"
                if not fields:
                    continue
                if len(fields) != len(header):
                    raise ValueError(
                        f"{where}: expected {len(header)} columns ({', '.join(header)}), but got "
                        f"{len(fields)}; put text with separators in quotes"
                    )
                yield where, dict(zip(header, fields, strict=True))
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"Expected {table} to be a CSV file in UTF-8, but {error}") from error


def _separator(table: Path) -> str:
    """Return what separates the columns: what the header has most of."""
    with table.open(encoding="utf-8-sig", newline="") as file:
        header = file.readline()
    return max(",;\t", key=header.count)


def _check_header(table: Path, header: list[str]) -> None:
    if absent := [column for column in _COLUMNS if column not in header]:
        raise ValueError(
            f"{table} line 1: expected the columns {' and '.join(_COLUMNS)} (perhaps "
            f"{', '.join(_OPTIONAL)}), but got {', '.join(header) or 'nothing'}: name "
            f"{' and '.join(absent)} in the first line"
        )
    twice = sorted({column for column in header if header.count(column) > 1})
    if twice:
        raise ValueError(f"{table} line 1: expected every column once, but {twice} is there twice")


def _filled(row: dict[str, str], column: str, where: str) -> str:
    value = row[column].strip()
    if not value:
        raise ValueError(f"{where}, column `{column}`: expected a value, but it is empty")
    return value


def _flag(row: dict[str, str], column: str, where: str) -> bool | None:
    """Return the value of a flag, or None where it is empty or there is no such column."""
    value = row.get(column, "").strip().lower()
    if value not in _FLAGS and value not in _EMPTY:
        raise ValueError(
            f"{where}, column `{column}`: expected True, False or nothing, got {row[column]!r}"
        )
    return _FLAGS.get(value)
