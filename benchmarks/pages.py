"""Pages that hold text and, between markers, tables made anew from stored results; plots."""

from __future__ import annotations

import argparse
import re
import statistics
from pathlib import Path

from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from bgl._io import write_text
from bgl.pipeline.comparison import percent


def signed(values: list[float]) -> str:
    """Write the mean ± interval of differences, in points."""
    return "" if not values else ("+" if statistics.fmean(values) >= 0 else "") + percent(values)


def fill(page: str, tables: dict[str, str], markers: str = "[a-z]+") -> str:
    """Put the tables into a page, between ``<!-- NAME -->`` and ``<!-- /NAME -->``.

    Args:
        page: Its text.
        tables: By name.
        markers: Names to look at, a regular expression; other programs may fill in the others.

    Raises:
        ValueError: If it asks for a table that there is not.
    """

    def put(found: re.Match[str]) -> str:
        name = found[1]
        if name not in tables:
            raise ValueError(f"Expected a marker of the page to be one of {list(tables)}: {name}")
        return f"<!-- {name} -->\n{tables[name]}\n<!-- /{name} -->"

    pattern = rf"<!-- ({markers}) -->\n.*?<!-- /\1 -->"
    return re.sub(pattern, put, page, flags=re.DOTALL)


def make_parser(description: str | None, output: str) -> argparse.ArgumentParser:
    """Make the parser of a comparison that keeps its results, and puts a table into pages."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--output-dir", type=Path, default=Path(output))
    parser.add_argument(
        "--page", type=Path, nargs="+", default=[], help="Markdown files whose table to replace"
    )
    return parser


def show(table: str, name: str, pages: list[Path]) -> None:
    """Print a table and put it into the pages."""
    print(table)
    for page in pages:
        write_text(page, fill(page.read_text(), {name: table}, markers=name))


def save(figure: Figure, path: Path, dpi: int = 110) -> None:
    """Write a plot, in the format that the file's name ends in."""
    figure.savefig(path, dpi=dpi)
    plt.close(figure)
