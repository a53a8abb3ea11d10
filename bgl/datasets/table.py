"""Your own images: a CSV file with a line for each, in the columns of open-metric-learning::

    path,label,split,is_query,is_gallery
    images/a/1.jpg,a,train,,
    images/b/1.jpg,b,validation,True,False
    images/b/2.jpg,b,validation,False,True

``split`` is "train" or "validation". What that library calls validation is ``test`` here; the
classes to choose the epoch on are drawn from the train classes, as for every dataset. If all lines
of validation are query and gallery, there is one test set, in which every image looks for the
others; if none is both, the queries are ``test`` and the others ``gallery``. Labels are any text.
Further columns are ignored.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

from bgl.datasets.listing import Listing

_COLUMNS = ("path", "label", "split", "is_query", "is_gallery")
_UNUSED = ("x_1", "x_2", "y_1", "y_2", "sequence")
_FLAGS = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}
_EMPTY = {"", "none", "nan", "null"}


def read_table(table: str | Path, root: str | Path | None = None) -> Listing:
    """Read a table.

    Args:
        table: A CSV file in UTF-8, with a header and commas.
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
        raise FileNotFoundError(f"Expected argument `root` to be a folder, but got {home}")
    notes: list[str] = []
    rows: list[tuple[str, str, str, bool, bool]] = []
    for where, row in _rows(table, notes):
        path, label = (_filled(row, column, where) for column in ("path", "label"))
        split = row["split"].strip()
        if split not in ("train", "validation"):
            raise ValueError(
                f"{where}, column `split`: expected train or validation, but got {split!r}"
            )
        query, gallery = (
            _flag(row, column, where, required=split == "validation")
            for column in ("is_query", "is_gallery")
        )
        if split == "validation" and not query and not gallery:
            raise ValueError(
                f"{where}, columns `is_query` and `is_gallery`: expected one of them to be True "
                "where `split` is validation; remove the line if it is neither"
            )
        if split == "train" and (query or gallery):
            raise ValueError(
                f"{where}, columns `is_query` and `is_gallery`: expected them to be empty where "
                f"`split` is train, but got {row['is_query']!r}, {row['is_gallery']!r}"
            )
        rows.append((where, path, label, query, gallery))
    both = [where for where, _, _, query, gallery in rows if query and gallery]
    held_out = sum(query or gallery for *_, query, gallery in rows)
    if both and len(both) < held_out:
        raise ValueError(
            f"{both[0]}, columns `is_query` and `is_gallery`: expected all lines of validation to "
            f"be both or none, but {len(both)} of {held_out} are both; a query that is in "
            "another's gallery would find itself"
        )
    parts = ("train", "test", "gallery") if len(both) < held_out else ("train", "test")
    listing = Listing(home, dict.fromkeys(parts, table))
    listing.notes = notes
    for where, path, label, query, gallery in rows:
        listing.add("test" if query else "gallery" if gallery else "train", label, path, where)
    return listing


def _rows(table: Path, notes: list[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield where each line of the table is, and the line as a dictionary."""
    try:
        with table.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            header = next(reader, [])
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
                        f"{len(fields)}; put text with commas in quotes"
                    )
                yield where, dict(zip(header, fields, strict=True))
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"Expected {table} to be a CSV file in UTF-8, but {error}") from error


def _check_header(table: Path, header: list[str]) -> None:
    absent = [column for column in _COLUMNS if column not in header]
    if absent:
        raise ValueError(
            f"{table} line 1: expected the columns {', '.join(_COLUMNS)}, but "
            f"{', '.join(absent)} is not in {header}"
        )
    twice = sorted({column for column in header if header.count(column) > 1})
    if twice:
        raise ValueError(f"{table} line 1: expected every column once, but {twice} is there twice")


def _filled(row: dict[str, str], column: str, where: str) -> str:
    value = row[column].strip()
    if not value:
        raise ValueError(f"{where}, column `{column}`: expected a value, but it is empty")
    return value


def _flag(row: dict[str, str], column: str, where: str, required: bool) -> bool:
    value = row[column].strip().lower()
    if value in _FLAGS:
        return _FLAGS[value]
    if value not in _EMPTY:
        raise ValueError(
            f"{where}, column `{column}`: expected True, False or nothing, got {row[column]!r}"
        )
    if required:
        raise ValueError(
            f"{where}, column `{column}`: expected True or False where `split` is validation, "
            "but it is empty"
        )
    return False
