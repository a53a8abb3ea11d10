"""The table of a run: on the terminal, in Markdown, as comma-separated values."""

from __future__ import annotations

import csv
import io
from collections.abc import Collection

from rich import box
from rich.console import Console
from rich.table import Table

from bgl.pipeline.comparison import TRANSDUCTIVE, comparison
from bgl.pipeline.results import Row


def print_table(rows: list[Row], title: str, failed: Collection[str] = ()) -> None:
    """Show the table on the terminal, and the names of models whose training failed."""
    header, cells = comparison(rows)
    table = Table(title=title, box=box.SIMPLE, padding=(0, 1, 0, 0))
    for number, column in enumerate(header):
        table.add_column(column, justify="left" if number < 2 else "right", no_wrap=True)
    plain = [line for line in cells if not line[0].endswith(TRANSDUCTIVE)]
    for line in plain:
        table.add_row(*line)
    if len(plain) < len(cells):
        table.add_section()
        table.add_row("[bold]refined over the whole gallery, without labels[/]")
    for line in cells[len(plain) :]:  # they come last
        table.add_row(*line)
    for name in failed:
        table.add_row(f"{name}: failed")
    # every column whole, also where the output is no terminal
    Console(width=max(150, Console().width)).print(table)


def markdown(rows: list[Row]) -> str:
    """Format the table in Markdown."""
    header, cells = comparison(rows)
    return markdown_table(header, cells, left=(0, 1))


def markdown_table(header: list[str], lines: list[list[str]], left: Collection[int] = (0,)) -> str:
    """Format any table in Markdown; ``left`` numbers the columns that are aligned left."""
    rule = [":--" if column in left else "--:" for column in range(len(header))]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [header, rule, *lines])


def as_csv(rows: list[Row]) -> str:
    """Format the table as comma-separated values."""
    text = io.StringIO()
    header, cells = comparison(rows)
    csv.writer(text, lineterminator="\n").writerows([header, *cells])
    return text.getvalue().rstrip()
