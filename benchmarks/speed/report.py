"""The tables and the plot of docs/performance.md: ``python -m benchmarks.speed.report``

The page holds the text; between ``<!-- NAME -->`` and ``<!-- /NAME -->`` stand tables (machine,
cases, step, growth), which are made anew from the results that ``--json`` has stored. The
plot goes beside the page.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from benchmarks.pages import fill
from benchmarks.speed.growth import plot_growth
from benchmarks.speed.measure import seconds
from benchmarks.speed.run import HEADER, cells
from benchmarks.speed.step import STEP_HEADER, step_cells
from bgl._io import write_text
from bgl.pipeline.table import markdown_table

DOCS = Path(__file__).resolve().parents[2] / "docs"


def growth_table(rows: list[dict[str, Any]]) -> str:
    """Graph learning on ever more samples."""
    lines = []
    for row in rows:
        if row["axis"] == "samples":
            way = {"searched": "all pairs", "given": "60 given candidates"}[row["curve"]]
            per_edge = 2**20 * row["mib"] / (30 * row["value"])
            lines.append([
                way, f"{row['value']:,}", seconds(row["seconds"]), f"{row['mib']:.0f}",
                f"{per_edge:.0f}",
            ])  # fmt: skip
    header = ["neighbours chosen from", "samples", "CPU", "MiB", "bytes per sample and neighbour"]
    return markdown_table(header, lines)


def machines(stored: dict[str, list[dict[str, Any]]]) -> str:
    """Where and with what the results were measured."""
    seen = dict.fromkeys(row["machine"] for rows in stored.values() for row in rows)
    described: dict[str, list[str]] = {}
    for machine in seen:
        load = machine.partition("load ")[2].partition(";")[0]
        described.setdefault(machine.replace(f", load {load}", ""), []).append(load)
    return "\n".join(
        f"- {' '.join(machine.split())}; load while measuring: {min(loads, key=float)} to "
        f"{max(loads, key=float)}"
        for machine, loads in described.items()
    )


def main(argv: list[str] | None = None) -> int:
    """Make tables and plot; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("results", type=Path, nargs="?", default=DOCS / "results" / "speed.json")
    parser.add_argument("page", type=Path, nargs="?", default=DOCS / "performance.md")
    options = parser.parse_args(argv)
    stored = json.loads(options.results.read_text(encoding="utf-8"))
    tables = {
        "machine": machines(stored),
        "cases": markdown_table(
            HEADER[1:], [cells(row)[1:] for row in stored["cases"]], left=(0, 1)
        ),
        "step": markdown_table(STEP_HEADER, [step_cells(row) for row in stored["step"]]),
        "growth": growth_table(stored["growth"]),
    }
    write_text(options.page, fill(options.page.read_text(encoding="utf-8"), tables))
    plot_growth(stored["growth"], options.page.with_name("performance_growth.png"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
