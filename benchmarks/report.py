"""The comparison table of one or more runs: ``python -m benchmarks.report RUN [RUN ...]``."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from bgl.pipeline import as_csv, markdown, print_table
from bgl.pipeline.comparison import label
from bgl.pipeline.files import read_results
from bgl.pipeline.results import Row


def load_rows(runs: list[Path]) -> list[Row]:
    """Load all rows of several run folders.

    A row that stands in more than one run is taken once. Where runs hold the same arm and seed
    with other options, the later run's rows bear its name.
    """
    rows: dict[str, Row] = {}
    for run in runs:
        for row in read_results(run)["rows"]:
            known = rows.setdefault(json.dumps([label(row), row["embedding"], row["seed"]]), row)
            if known is not row and known.get("config") != row.get("config"):
                row["run"] = run.name
                rows[json.dumps([label(row), row["embedding"], row["seed"]])] = row
    return list(rows.values())


def main() -> None:
    """Print the table of the runs named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path, help="run folders with a results.json")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--markdown", action="store_true", help="print Markdown")
    form.add_argument("--csv", action="store_true", help="print comma-separated values")
    options = parser.parse_args()
    rows = load_rows(options.runs)
    if options.markdown:
        print(markdown(rows))
    elif options.csv:
        print(as_csv(rows))
    else:
        print_table(rows, ", ".join(str(run) for run in options.runs))


if __name__ == "__main__":
    main()
