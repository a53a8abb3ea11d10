"""Train the rows of a published table: ``python -m benchmarks.reproduce --table dybgr``

Every row is trained from its file under configs/, twice: as papers do it (all train classes,
the epoch chosen on the test classes: optimistic) and honestly (the epoch chosen on validation
classes). Rows whose data or weights are not there are skipped and listed. What is finished is not
trained again: after an interruption, repeat the command.

Further options are those of run.py and change the rows (``--workers 8``); they are printed with
the table.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import time
from functools import cache
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from benchmarks.reproduce.dry_run import dry_run
from benchmarks.schedule import run_all
from bgl.datasets import Splits
from bgl.pipeline import TerminalProgress, load_splits, trained_rows
from bgl.pipeline.comparison import percent
from bgl.pipeline.outcome import Outcome
from bgl.pipeline.recipes import TABLES, Recipe, recipes
from bgl.pipeline.results import Row
from bgl.training import TrainConfig

PROTOCOLS = ("paper", "honest")
DATA = (  # the options that name the data
    "dataset", "data_root", "protocol", "val_fraction", "skip_broken", "allow_partial", "download",
)  # fmt: skip


def data_folder(root: Path, dataset: str) -> Path:
    """Find ``root/DATASET``, else ``root`` (which may hold the archives' folders)."""
    names = [dataset, dataset.partition("-")[0]]
    return next((root / name for name in names if (root / name).is_dir()), root)


def fit_batch(config: TrainConfig, splits: Splits) -> TrainConfig:
    """Shrink the batch where validation leaves fewer classes than the published one holds."""
    most = splits.train.num_classes * config.per_class
    return dataclasses.replace(config, batch_size=min(config.batch_size, most))


@cache
def splits_of(**options: Any) -> Splits:
    """Read the data, once for all rows that share them."""
    return load_splits(TrainConfig(**options))


def train_row(
    recipe: Recipe, protocol: str, words: list[str], root: Path, folder: Path, console: Console
) -> list[Row]:
    """Train a row by a protocol for every seed; rows of the embedding that was published."""
    place = folder / recipe.name.replace("/", "-")
    found = []
    for config in recipe.configs("--protocol", protocol, *words):
        config = dataclasses.replace(config, data_root=str(data_folder(root, config.dataset)))
        splits = splits_of(**{name: getattr(config, name) for name in DATA})
        config = fit_batch(config, splits)
        run = place / f"{protocol}-seed{config.seed}"
        console.print(f"[bold]{recipe.name}[/], {protocol}, seed {config.seed}")
        progress = TerminalProgress(console)
        with progress.bars:
            rows = trained_rows(config, splits, run, progress)
        found += [row for row in rows if row["embedding"] == config.select_embedding]
    return found


def line(recipe: Recipe, results: dict[str, list[Row]]) -> list[str]:
    """Write dataset, row, published, paper-style, honest, honest - published, seeds; Recall@1."""
    value = recipe.published.figures["recall@1"]
    values = {p: [row["metrics"]["recall@1"] for row in results.get(p, [])] for p in PROTOCOLS}
    honest = values["honest"]
    difference = f"{100 * statistics.fmean(honest) - value:+.1f}" if honest else ""
    seeds = max(len(found) for found in values.values())
    shown = [percent(values[p]) if values[p] else "" for p in PROTOCOLS]
    return [recipe.published.dataset, recipe.title, f"{value:.1f}", *shown, difference, str(seeds)]


def print_lines(lines: list[list[str]], title: str, console: Console) -> None:
    """Show the table on the terminal."""
    table = Table(title=title, box=box.SIMPLE)
    names = ("dataset", "row", "published", "paper-style (optimistic)", "honest")
    for column in (*names, "honest - published", "seeds"):
        table.add_column(column, justify="left" if column in names[:2] else "right", no_wrap=True)
    for cells in lines:
        table.add_row(*cells)
    Console(file=console.file, width=max(120, console.width)).print(table)


def dry_runs(wanted: list[Recipe], console: Console) -> int:
    """Try every recipe on stand-in data, a line each; 1 if one fails."""
    failed = 0
    for recipe in wanted:
        started = time.perf_counter()
        try:
            said, mark = dry_run(recipe), "[green]ok[/]    "
        except Exception as error:  # whatever goes wrong, the other recipes are tried as well
            said, mark = f"{type(error).__name__}: {' '.join(str(error).split())}", "[red]failed[/]"
            failed += 1
        seconds = time.perf_counter() - started
        text = escape(f"{recipe.name}  {said}  ({seconds:.1f} s)")
        console.print(f"{mark}  {text}", highlight=False, soft_wrap=True)
    console.print(f"{len(wanted) - failed} of {len(wanted)} recipes passed", highlight=False)
    return int(failed > 0)


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of the options of this program alone."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.reproduce",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--table", required=True, choices=list(TABLES), help="published table")
    parser.add_argument(
        "--data-root", type=Path, default=Path("data"), help="folder of the datasets (data)"
    )
    parser.add_argument("--datasets", nargs="+", help="these only; default: all of the table")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], help="one run each (0)")
    parser.add_argument(
        "--protocols", nargs="+", choices=PROTOCOLS, default=list(PROTOCOLS), help="default: both"
    )
    parser.add_argument(
        "--output-dir", type=Path, default=Path("runs/reproduce"), help="where runs are kept"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="try every recipe on tiny stand-in data instead"
    )
    return parser


def main(argv: list[str] | None = None) -> int:
    """Reproduce a table; returns the exit status."""
    parser = make_parser()
    options, words = parser.parse_known_args(argv)
    known = {recipe.published.dataset for recipe in recipes(options.table)}
    if unknown := sorted(set(options.datasets or []) - known):
        parser.error(f"--datasets: {', '.join(unknown)} not in the table; it has {sorted(known)}")
    wanted = recipes(options.table, options.datasets)
    console = Console()
    if options.dry_run:
        return dry_runs(wanted, console)

    folder = options.output_dir / options.table
    lines, stored = [], []
    seeds = ["--seed", *map(str, options.seeds)]

    def train(outcome: Outcome) -> None:
        for recipe in wanted:
            results: dict[str, list[Row]] = {}
            for protocol in options.protocols:
                arguments = (recipe, protocol, [*words, *seeds], options.data_root, folder, console)
                with outcome.attempt(f"{recipe.name}, {protocol}"):
                    results[protocol] = train_row(*arguments)
            if results:
                lines.append(line(recipe, results))
                stored.append({**dataclasses.asdict(recipe.published), "results": results})
                folder.mkdir(parents=True, exist_ok=True)
                (folder / "table.json").write_text(json.dumps({"rows": stored}, indent=1))
        changed = f"; changed: {' '.join(words)}" if words else ""
        if lines:
            print_lines(lines, f"{options.table}: Recall@1 in percent{changed}", console)

    return run_all(train, console)
