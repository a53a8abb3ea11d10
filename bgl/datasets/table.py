"""Your own images: a table with a line for each, in the columns of open-metric-learning."""

from __future__ import annotations

import csv
import warnings
from collections.abc import Iterator
from pathlib import Path

from bgl.datasets.base import Splits
from bgl.datasets.listing import Listing

_COLUMNS = ("path", "label", "split", "is_query", "is_gallery")
_UNUSED = ("x_1", "x_2", "y_1", "y_2", "sequence")
_TRUE = {"true", "1", "1.0"}
_FALSE = {"false", "0", "0.0"}
_EMPTY = {"", "none", "nan", "null"}


def load_table(
    table: str | Path,
    root: str | Path | None = None,
    val_fraction: float = 0.25,
    seed: int = 0,
    skip_broken: bool = False,
    allow_partial: bool = False,
) -> Splits:
    """Load the images that a CSV file lists, in the columns of open-metric-learning::

        path,label,split,is_query,is_gallery
        images/a/1.jpg,a,train,,
        images/b/1.jpg,b,validation,True,False
        images/b/2.jpg,b,validation,False,True

    ``split`` is "train" or "validation". What that library calls validation is ``test`` here; the
    classes to choose the epoch on are drawn from the train classes, as for every dataset. If all
    lines of validation are query and gallery, there is one test set, in which every image looks
    for the others; if none is both, the queries are ``test`` and the others ``gallery``. Labels
    are any text. Further columns are left alone.

    Args:
        table: a CSV file in UTF-8, with a header and commas.
        root: folder that the paths are relative to and that all images lie in; by default the
            table's own.
        val_fraction: share of the train classes held out for validation; see
            :func:`~bgl.datasets.load_folder`.
        seed: seed of that draw.
        skip_broken: leave out images that can't be decoded; see :func:`~bgl.datasets.load_folder`.
        allow_partial: go on with one warning if images are missing.

    Warns:
        UserWarning: if bounding boxes or sequences are given, which nothing here uses; and with
            lines that repeat another.

    Raises:
        FileNotFoundError: if the table, the root or all images are missing.
        ValueError: if a column is missing or a value is not as above (the message names line and
            column), a label is on both sides, an image is listed with two labels or parts, or
            images are missing.
    """
    table = Path(table)
    if not table.is_file():
        raise FileNotFoundError(f"Expected argument `table` to be a CSV file, but got {table}")
    home = Path(root) if root is not None else table.parent
    if not home.is_dir():
        raise FileNotFoundError(f"Expected argument `root` to be a folder, but got {home}")
    train: list[tuple[str, str, str]] = []
    held_out: list[tuple[str, str, str, bool, bool]] = []
    for where, row in _rows(table):
        path, label = (_filled(row, column, where) for column in ("path", "label"))
        split = row["split"].strip()
        flags = [_flag(row, column, where) for column in ("is_query", "is_gallery")]
        if split == "train":
            if any(flags):
                raise ValueError(
                    f"{where}, columns `is_query` and `is_gallery`: expected them to be empty "
                    f"where `split` is train, but got {row['is_query']!r}, {row['is_gallery']!r}"
                )
            train.append((where, path, label))
        elif split == "validation":
            query, gallery = (
                _given(flag, column, where)
                for flag, column in zip(flags, ("is_query", "is_gallery"), strict=True)
            )
            if not query and not gallery:
                raise ValueError(
                    f"{where}, columns `is_query` and `is_gallery`: expected one of them to be "
                    "True where `split` is validation; remove the line if it is neither"
                )
            held_out.append((where, path, label, query, gallery))
        else:
            raise ValueError(
                f"{where}, column `split`: expected train or validation, but got {split!r}"
            )
    return _listing(table, home, train, held_out).splits(
        val_fraction, seed, skip_broken, allow_partial
    )


def _listing(
    table: Path,
    home: Path,
    train: list[tuple[str, str, str]],
    held_out: list[tuple[str, str, str, bool, bool]],
) -> Listing:
    both = [where for where, _, _, query, gallery in held_out if query and gallery]
    one_set = len(both) == len(held_out)
    if both and not one_set:
        raise ValueError(
            f"{both[0]}, columns `is_query` and `is_gallery`: expected all lines of validation to "
            f"be both or none, but {len(both)} of {len(held_out)} are both; a query that is in "
            "another's gallery would find itself"
        )
    parts = ("train", "test") if one_set else ("train", "test", "gallery")
    listing = Listing("table", home, dict.fromkeys(parts, table))
    for where, path, label in train:
        listing.add("train", label, path, where)
    for where, path, label, query, _ in held_out:
        listing.add("test" if query else "gallery", label, path, where)
    return listing


def _rows(table: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """Each line of the table as a dictionary, and where it is."""
    try:
        with table.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            header = next(reader, [])
            _check_header(table, header)
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
    unused = [column for column in _UNUSED if column in header]
    if unused:
        warnings.warn(
            f"{table}: the columns {', '.join(unused)} are not used; images are taken whole and "
            "each counts for itself",
            UserWarning,
            stacklevel=2,
        )


def _filled(row: dict[str, str], column: str, where: str) -> str:
    value = row[column].strip()
    if not value:
        raise ValueError(f"{where}, column `{column}`: expected a value, but it is empty")
    return value


def _flag(row: dict[str, str], column: str, where: str) -> bool | None:
    value = row[column].strip().lower()
    if value in _EMPTY:
        return None
    if value not in _TRUE | _FALSE:
        raise ValueError(
            f"{where}, column `{column}`: expected True, False or nothing, got {row[column]!r}"
        )
    return value in _TRUE


def _given(flag: bool | None, column: str, where: str) -> bool:
    if flag is None:
        raise ValueError(
            f"{where}, column `{column}`: expected True or False where `split` is validation, "
            "but it is empty"
        )
    return flag
