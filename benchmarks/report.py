"""The comparison table of one or more runs: ``python benchmarks/report.py RUN [RUN ...]``."""

from __future__ import annotations

import argparse
import json
import math
import statistics
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from scipy.stats import t as student

Row = dict[str, Any]
METRICS = {
    "recall@1": "R@1",
    "recall@2": "R@2",
    "recall@4": "R@4",
    "recall@8": "R@8",
    "map@r": "MAP@R",
    "r_precision": "R-Prec",
}


def mean_and_interval(values: list[float]) -> tuple[float, float]:
    """Mean and half width of its 95 % confidence interval (Student's t; NaN for one value)."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return mean, math.nan
    error = statistics.stdev(values) / math.sqrt(len(values))
    return mean, float(student.ppf(0.975, len(values) - 1)) * error


def label(row: Row) -> str:
    """The name of a row's arm: graph, loss and augmentation, the defaults left out."""
    parts = [row["method"]]
    if row.get("loss", "pairwise-ce") != "pairwise-ce":
        parts = [row["loss"]] if row["method"] == "none" else [*parts, row["loss"]]
    if row.get("augmentation", "none") != "none":
        parts.append(row["augmentation"])
    if row.get("protocol") == "paper":
        parts[-1] += " (paper-style, optimistic)"
    return " + ".join(parts) + (f" [{row['run']}]" if "run" in row else "")


def metrics_of(rows: list[Row]) -> dict[str, str]:
    """The columns of the table and their titles; which K of Recall@K depends on the dataset."""
    names = {name for row in rows for name in row["metrics"] if name.startswith("recall@")}
    cutoffs = sorted(int(name.partition("@")[2]) for name in names)
    rest = {name: title for name, title in METRICS.items() if not name.startswith("recall@")}
    return {f"recall@{k}": f"R@{k}" for k in cutoffs} | rest


def arms(rows: list[Row]) -> dict[tuple[str, str], list[Row]]:
    """Rows grouped by arm and embedding, in the order of their first appearance."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((label(row), row["embedding"]), []).append(row)
    return groups


def percent(values: list[float]) -> str:
    """Mean ± interval in percent."""
    mean, half = mean_and_interval([100 * v for v in values])
    return f"{mean:.1f}" if math.isnan(half) else f"{mean:.1f} ± {half:.1f}"


def paired_difference(rows: list[Row], baseline: list[Row], metric: str) -> list[float]:
    """Differences to the baseline, seed by seed."""
    base = {row["seed"]: row["metrics"][metric] for row in baseline}
    return [r["metrics"][metric] - base[r["seed"]] for r in rows if r["seed"] in base]


def comparison(rows: list[Row]) -> tuple[list[str], list[list[str]]]:
    """Header and cells of the table: percent, mean ± 95 % CI over seeds, paired differences."""
    groups = arms(rows)
    metrics = metrics_of(rows)
    header = ["method", "embedding", *metrics.values(), "Δ R@1", "Δ MAP@R", "seeds", "epoch", "min"]
    cells = []
    for (name, embedding), group in groups.items():
        line = [name, embedding]
        for metric in metrics:
            values = [r["metrics"][metric] for r in group if metric in r["metrics"]]
            line.append(percent(values) if values else "")
        plain = {**group[0], "method": "none", "augmentation": "none"}
        baseline = groups.get((label(plain), embedding), [])
        for metric in ("recall@1", "map@r"):
            differences = paired_difference(group, baseline, metric)
            trained = group[0].get("epoch") is not None
            is_baseline = baseline and baseline[0] is group[0]
            line.append(percent(differences) if differences and trained and not is_baseline else "")
        line.append(str(len(group)) if group[0].get("epoch") is not None else "")
        line.append(" ".join(str(r["epoch"]) for r in group if r.get("epoch") is not None))
        seconds = [r["seconds"] for r in group if r.get("seconds") is not None]
        line.append(f"{statistics.fmean(seconds) / 60:.1f}" if seconds else "")
        cells.append(line)
    return header, cells


def print_table(rows: list[Row], title: str) -> None:
    """Show the table on the terminal."""
    header, cells = comparison(rows)
    table = Table(title=title, box=box.SIMPLE, padding=(0, 1, 0, 0))
    for number, column in enumerate(header):
        table.add_column(column, justify="left" if number < 2 else "right", no_wrap=True)
    for line in cells:
        table.add_row(*line)
    # every column whole, also where the output is no terminal
    Console(width=max(150, Console().width)).print(table)


def markdown(rows: list[Row]) -> str:
    """The table in Markdown."""
    header, cells = comparison(rows)
    lines = [header, [":--"] * 2 + ["--:"] * (len(header) - 2), *cells]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def load_rows(runs: list[Path]) -> list[Row]:
    """All rows of several run folders.

    A row that stands in more than one run is taken once. Where runs hold the same arm and seed
    with other options, the later run's rows bear its name.
    """
    rows: dict[str, Row] = {}
    for run in runs:
        for row in json.loads((run / "results.json").read_text())["rows"]:
            known = rows.setdefault(json.dumps([label(row), row["embedding"], row["seed"]]), row)
            if known is not row and known.get("config") != row.get("config"):
                row["run"] = run.name
                rows[json.dumps([label(row), row["embedding"], row["seed"]])] = row
    return list(rows.values())


def main() -> None:
    """Print the table of the runs named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path, help="run folders with a results.json")
    parser.add_argument("--markdown", action="store_true", help="print Markdown")
    options = parser.parse_args()
    rows = load_rows(options.runs)
    if options.markdown:
        print(markdown(rows))
    else:
        print_table(rows, ", ".join(str(run) for run in options.runs))


if __name__ == "__main__":
    main()
