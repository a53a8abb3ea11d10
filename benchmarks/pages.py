"""Pages that hold text and, between markers, tables made anew from stored results; plots."""

from __future__ import annotations

import re
import statistics
from pathlib import Path

from matplotlib import pyplot as plt
from matplotlib.figure import Figure

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


def save(figure: Figure, path: Path, dpi: int = 110) -> None:
    """Write a plot, in the format that the file's name ends in."""
    figure.savefig(path, dpi=dpi)
    plt.close(figure)
