"""Train and measure the whole pipeline: ``bgl train [--dataset emoji] ...``

Without arguments: the packaged emoji, EfficientNet-Lite0 with ImageNet weights, and one table with
the raw pixels, the pretrained encoder as it is, fine-tuned without a graph (the recipe plain), and
with one (graph). Other data are trained on without a graph unless one is asked for. Everything
lands in a run folder. A run that was interrupted goes on with ``--resume FOLDER``, or when the same
command is given again with its ``--output-dir``. Several processes train as one: ``torchrun
--nproc-per-node=N benchmarks/run.py ...``.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from accelerate import PartialState
from rich.console import Console
from rich.markup import escape

from bgl._io import write_text
from bgl._plugins import import_plugins
from bgl._usage import as_on_the_command_line, notes
from bgl.datasets import Splits
from bgl.images import BrokenImageError
from bgl.pipeline.data import fit_batches, load_splits
from bgl.pipeline.explorer import explore_run
from bgl.pipeline.files import read_results
from bgl.pipeline.folder import locked, new_folder
from bgl.pipeline.options import Command, parse, write_command
from bgl.pipeline.outcome import FAILURES, Outcome
from bgl.pipeline.overview import TOUR
from bgl.pipeline.picture import GRAPH_FILE, draw_first_graph
from bgl.pipeline.recorder import LastTest, Recorder
from bgl.pipeline.refined import refined_rows
from bgl.pipeline.results import (
    RESULT_FILE,
    RESULTS_FILE,
    About,
    Row,
    check_about,
    model_name,
    with_new,
)
from bgl.pipeline.rows import baseline_rows, check_folder, describe, pixel_rows, trained_rows
from bgl.pipeline.table import print_table
from bgl.pipeline.terminal import TerminalProgress
from bgl.pipeline.tracking import check_trackers
from bgl.training import Interrupted, Progress, ProgressList, make_accelerator
from bgl.training.build import check_parts
from bgl.training.distributed import on_first_process
from bgl.training.loop import check_classes


@dataclass
class Run:
    """A run folder that this command holds: what is in it, and what is to be done in it."""

    command: Command
    splits: Splits
    about: About
    folder: Path
    rows: list[Row]

    def measure(self, progress: Progress, announce: Callable[[str], None]) -> dict[str, Exception]:
        """Train what is not trained yet, measure everything, and keep every row at once.

        A model whose training fails does not end the others.

        Args:
            progress: Told about stages, items and epochs.
            announce: Told what begins and what was found, a line each.

        Returns:
            What failed, by the name of the model, and why.
        """
        command, splits, folder = self.command, self.splits, self.folder
        started = time.perf_counter()

        def save(new: list[Row]) -> None:
            self.rows[:] = with_new(self.rows, new)
            self.about["seconds"] = time.perf_counter() - started
            self.about["failed"] = {name: str(why) for name, why in outcome.failed.items()}
            if main_process:
                results = {**self.about, "rows": self.rows}
                write_text(folder / RESULTS_FILE, json.dumps(results, indent=1))
            for line in row_lines(new):
                announce(line)

        outcome, main_process = Outcome(), PartialState().is_main_process
        save(pixel_rows(command.configs[0], splits, command.pixels))
        if main_process:
            self.draw(announce)
        pretrained = Recorder(folder, splits)
        listeners = ProgressList(pretrained, progress)
        save(baseline_rows(command.configs[0], splits, listeners))
        if main_process:
            pretrained.finish()
        for config in command.configs:
            place = folder / model_name(config.method, config.seed)
            finished = on_first_process((place / RESULT_FILE).exists)
            what = "finished before, taken as it is"
            if not finished:
                what = f"method {config.method}, seed {config.seed}"
            announce(f"{place.name}: {what}")
            tested = LastTest(splits)
            listeners = ProgressList(tested, progress)
            with outcome.attempt(place.name):
                trained = trained_rows(config, splits, place, listeners, command.trackers)
                save(trained)
                if command.refine:
                    save(refined_rows(trained, config, place, splits, progress, tested.vectors))
            if place.name in outcome.failed:
                announce(f"{place.name}: failed: {outcome.failed[place.name]}")
        if outcome.failed:
            save([])
        return outcome.failed

    def draw(self, announce: Callable[[str], None]) -> None:
        """Draw the graph of some images, in the first minute, where a method has one."""
        path = self.folder / GRAPH_FILE
        config = next((config for config in self.command.configs if config.block_names), None)
        if config is None or path.exists():
            return
        try:
            draw_first_graph(config, self.splits, path)
        except (ValueError, OSError) as error:
            announce(f"note: there is no picture of a graph: {error}")
        else:
            announce(f"look at it: {path}, the graph of some images before training")


def row_lines(rows: list[Row]) -> list[str]:
    """Say what was measured, a line for each model."""
    measured: dict[str, list[str]] = {}
    for row in rows:
        name = model_name(row["method"], row["seed"])
        recall, precision = row["metrics"]["recall@1"], row["metrics"]["map@r"]
        parts = measured.setdefault(name, [])
        what = f"{row['embedding']}{', refined' if row.get('transductive') else ''}"
        parts.append(f"test {what}: R@1 {recall:.1%}, MAP@R {precision:.1%}")
    return [f"{name}  {'  '.join(parts)}" for name, parts in measured.items()]


@contextlib.contextmanager
def claimed(command: Command, splits: Splits) -> Iterator[Run]:
    """Check everything that can be checked, and lock the run folder while the run lasts.

    The run begins with the rows that earlier commands have measured in the folder.

    Raises:
        ValueError: If configuration and data do not fit, the folder belongs to another
            configuration or to other data, another process uses it, or its results.json was not
            written by bgl.
    """
    check_trackers(command.trackers)
    command = fit_batches(command, splits)
    for config in command.configs:
        check_classes(config, splits)
        if config.seed == command.configs[0].seed:
            check_parts(config, splits.train.num_classes, splits.train.labels)
    first = command.configs[0]
    # before anything starts CUDA, or asks for the state of the processes
    make_accelerator(first.device, first.deterministic)
    about: About = {
        "started": f"{datetime.now():%Y-%m-%d %H:%M:%S}",
        "quick": command.quick,
        **describe(first, splits),
    }

    def claim() -> tuple[Path, list[Row]]:
        folder = command.folder or new_folder(splits.name)
        stack.enter_context(locked(folder))
        rows = []
        if (folder / RESULTS_FILE).exists():
            earlier = read_results(folder)
            check_about(earlier, about, folder)
            rows = earlier["rows"]
        for config in command.configs:
            check_folder(config, folder / model_name(config.method, config.seed), splits)
        write_command(command, folder)
        return folder, rows

    with contextlib.ExitStack() as stack:
        yield Run(command, splits, about, *on_first_process(claim))


def run_command(argv: list[str], console: Console, program: str) -> int:
    """Parse the command line, train and measure, show the table and write the page."""
    with contextlib.ExitStack() as stack:
        try:
            words, plugins = import_plugins(argv)
            command = parse(words, __doc__)
            splits = load_splits(command.configs[0])
            run = stack.enter_context(claimed(command, splits))
        except (ValueError, OSError) as error:
            complain(error)
            return 2
        console.print(f"{splits}\nrun folder: {run.folder}", highlight=False, markup=False)
        progress = TerminalProgress(console)
        try:
            with progress.bars:
                failed = run.measure(progress, progress.say)
        except KeyboardInterrupt:
            given = [word for name in plugins for word in ("--plugin", name)]
            words = [program, shlex.join(["--resume", str(run.folder), *given])]
            line = f"\nto go on: {' '.join(words)}"
            console.print(line, markup=False, highlight=False, soft_wrap=True)
            raise
        except FAILURES as error:
            complain(error)
            return 1
        if PartialState().is_main_process:
            show(run, console)
            for name, why in failed.items():
                complain(why, f"{name} failed: ")
        return int(bool(failed))


def complain(error: Exception, start: str = "") -> None:
    """Print an error as one line."""
    line = escape(start + as_on_the_command_line(str(error)))
    if isinstance(error, BrokenImageError):
        line += "; mend it, or train anew without it: `skip_broken` (--skip-broken) leaves it out"
    Console(stderr=True).print(f"[bold red]error:[/] {line}", highlight=False, soft_wrap=True)


LEGEND = """\
R@1 (R@2, …): share of test images with an image of their class among the nearest 1 (2, …). MAP@R:
mean average precision among the R nearest, where R is the number of images to find. R-Prec: share
of those R that is right. Δ: difference to the run without a graph (none), seed by seed; with one
seed there is no interval (±), and small differences say nothing. backbone: the encoder's features;
head: the smaller embedding made of them; readout: a linear map of them. min: minutes of training.
epoch: {selection}.
"""


def show(run: Run, console: Console) -> None:
    """Print the table and write the page."""
    splits, rows, folder = run.splits, run.rows, run.folder
    print_table(
        rows,
        f"{splits.name}: retrieval among the {splits.test.num_classes} test classes, in percent",
        list(run.about["failed"]),
    )
    legend = LEGEND.format(selection=run.about["selection"])
    if run.about["quick"]:
        legend = f"{TOUR}\n{legend}"
    console.print(legend, highlight=False, markup=False, soft_wrap=True)
    if all(row["method"] != "pixels" for row in rows):
        console.print("without the raw pixels of so many images: --pixels measures them")
    if best := best_on_validation(rows):
        line = f"highest MAP@R on the validation classes: {folder / best}"
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    line = f"{summary(run)}; results: {folder / RESULTS_FILE}"
    console.print(line, highlight=False, markup=False, soft_wrap=True)
    try:
        line = f"look at it: {explore_run(folder, splits=splits)}"
    except (ValueError, OSError) as error:
        line = f"note: there is no page to look at: {error}"
    console.print(line, highlight=False, markup=False, soft_wrap=True)


def best_on_validation(rows: list[Row]) -> str | None:
    """Name the model with the highest MAP@R on the validation classes, if there are several.

    Example:
        >>> tested = {"embedding": "head", "metrics": {}}
        >>> best_on_validation([
        ...     {"method": "none", "seed": 0, "validation": 0.3, **tested},
        ...     {"method": "dybgr", "seed": 0, "validation": 0.4, **tested},
        ... ])
        'dybgr-seed0'
    """
    found = {model_name(row["method"], row["seed"]): row.get("validation") for row in rows}
    known = {name: value for name, value in found.items() if value is not None}
    return max(known, key=known.__getitem__) if len(known) > 1 else None


def summary(run: Run) -> str:
    """Say in one line what the run took, where, and how fast it was."""
    about, rows = run.about, run.rows

    def most(name: str) -> float:
        found: list[Any] = [row.get(name) for row in rows]
        return max((value or 0.0 for value in found), default=0.0)

    parts = [
        f"{about['seconds'] / 60:.1f} min",
        f"{about['gpu'] or 'CPU'}, {about['precision']['training']}",
        f"{about['processes']} processes" if about["processes"] > 1 else "1 process",
        f"peak memory {most('peak_memory_mb') / 1024:.1f} GB",
    ]
    if about["gpu"]:
        parts.insert(2, ", ".join(f"{n} {about['versions'][n]}" for n in ("cuda", "cudnn", "nccl")))
        parts.append(f"of the GPU {most('peak_gpu_memory_mb') / 1024:.1f} GB")
    if speed := most("images_per_second"):
        parts.append(f"{speed:,.0f} images/s, {most('waiting_for_data'):.0%} waiting for data")
    return ", ".join(parts)


def end_now(number: int, frame: FrameType | None) -> None:
    """Handle SIGTERM outside of training, where nothing has to be saved first."""
    raise Interrupted(number)


def main(argv: Sequence[str] | None = None, program: str = "bgl train") -> int:
    """Train and measure what a command line asks for.

    Args:
        argv: Its words; default: those of this process.
        program: What to repeat before them to go on after an interruption.

    Returns:
        The exit status: 0, 1 if training failed, 2 for wrong arguments, 128 + the signal that
        stopped it.
    """
    console = Console(quiet=int(os.environ.get("RANK", "0")) > 0)  # one process speaks for all
    main_thread = threading.current_thread() is threading.main_thread()  # others get no signals
    before = signal.signal(signal.SIGTERM, end_now) if main_thread else None
    try:
        with notes():
            return run_command(list(sys.argv[1:] if argv is None else argv), console, program)
    except KeyboardInterrupt as stopped:
        console.print(str(stopped) or "interrupted by SIGINT", markup=False, highlight=False)
        return int(getattr(stopped, "status", 128 + signal.SIGINT))
    finally:
        if main_thread:
            signal.signal(signal.SIGTERM, before)
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
