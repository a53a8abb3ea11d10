"""Train and measure the whole pipeline: ``bgl train [--dataset emoji] ...``

Without arguments: the packaged emoji, EfficientNet-Lite0 with ImageNet weights, and one table with
the raw pixels, the pretrained encoder as it is, the encoder fine-tuned without a graph, and
fine-tuned with DyBGR. Everything lands in a run folder. A run that was interrupted goes on with
``--resume FOLDER``, or when the same command is given again with its ``--output-dir``. Several
processes train as one: ``torchrun --nproc-per-node=N benchmarks/run.py ...``.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shlex
import signal
import sys
import time
from collections.abc import Sequence
from datetime import datetime
from types import FrameType
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from bgl._io import write_text
from bgl.images import BrokenImageError
from bgl.pipeline.explorer import explore_run
from bgl.pipeline.options import parse, write_command
from bgl.pipeline.recorder import Recorder
from bgl.pipeline.refined import refined_rows
from bgl.pipeline.rows import (
    RESULT_FILE,
    Row,
    baseline_rows,
    check_folder,
    describe,
    load_splits,
    trained_rows,
)
from bgl.pipeline.table import print_table
from bgl.pipeline.tracking import check_trackers
from bgl.training import (
    Interrupted,
    Progress,
    ProgressList,
    make_accelerator,
)
from bgl.training.loop import check_classes


class TerminalProgress(Progress):
    """Progress bars, and a line per epoch."""

    def __init__(self, console: Console) -> None:
        self.bars = Bars(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
        )
        self.console = console
        self.task: Any = None

    def start(self, what: str, total: int) -> None:
        if self.task is not None:
            self.bars.remove_task(self.task)
        self.task = self.bars.add_task(what, total=total)

    def advance(self, amount: int) -> None:
        self.bars.advance(self.task, amount)

    def epoch(self, row: dict[str, Any]) -> None:
        parts = [f"epoch {row['epoch']:>3}", f"loss {row['loss']:.3f}"]
        if "loss_graph" in row:
            parts.append(f"(plain {row['loss_plain']:.3f}, graph {row['loss_graph']:.3f})")
        for part, title in (("val", ""), ("test", "test ")):
            for embedding in ("backbone", "head"):
                if (name := f"{part}_{embedding}") + "_map@r" in row:
                    recall, precision = (row[f"{name}_{m}"] for m in ("recall@1", "map@r"))
                    parts.append(f"{title}{embedding}: R@1 {recall:.1%}, MAP@R {precision:.1%}")
        if row.get("skipped_steps"):
            parts.append(f"{row['skipped_steps']} batches skipped: not finite")
        self.console.print("  ".join(parts), highlight=False)


def benchmark(argv: list[str], console: Console, program: str) -> int:
    """Understand the command line, check everything that can be checked, train and measure."""

    def complain(error: Exception) -> None:
        line = escape(" ".join(str(error).split()))
        if isinstance(error, BrokenImageError):
            line += "; `skip_broken` (--skip-broken) leaves it out"
        Console().print(f"[bold red]error:[/] {line}", highlight=False, soft_wrap=True)

    try:
        command = parse(argv, __doc__)
        check_trackers(command.trackers)
        first = command.configs[0]
        main_process = make_accelerator(first.device).is_main_process
        (folder,) = broadcast_object_list([command.folder])  # the default has the time in its name
        command = dataclasses.replace(command, folder=folder)
        runs = {folder / f"{config.method}-seed{config.seed}": config for config in command.configs}
        for place, config in runs.items():
            check_folder(config, place)
        splits = load_splits(first)
        for config in command.configs:
            check_classes(config, splits)
        results = {"started": f"{datetime.now():%Y-%m-%d %H:%M:%S}", **describe(first, splits)}
        if main_process:
            folder.mkdir(parents=True, exist_ok=True)
            write_command(command)
    except (ValueError, OSError) as error:
        complain(error)
        return 2
    rows: list[Row] = []
    started = time.perf_counter()

    def save(new: list[Row]) -> None:
        rows.extend(new)
        results["seconds"] = time.perf_counter() - started
        if main_process:
            write_text(folder / "results.json", json.dumps({**results, "rows": rows}, indent=1))

    console.print(f"{splits}\nrun folder: {folder}", highlight=False, markup=False)
    progress = TerminalProgress(console)
    try:
        with progress.bars:
            pretrained = Recorder(folder, splits)
            save(baseline_rows(first, splits, ProgressList(pretrained, progress)))
            if main_process:
                pretrained.finish()
            for place, config in runs.items():
                known = ": finished before, taken as it is" * (place / RESULT_FILE).exists()
                console.print(f"[bold]{place.name}[/]{known}")
                trained = trained_rows(config, splits, place, progress, command.trackers)
                save(trained)
                if command.refine:
                    save(refined_rows(trained, config, place, splits, progress))
    except KeyboardInterrupt:
        words = f"{program} {shlex.join(['--resume', str(folder)])}"
        console.print(f"\nto go on: {words}", markup=False, highlight=False, soft_wrap=True)
        raise
    except (ValueError, OSError, FloatingPointError, MemoryError) as error:
        complain(error)
        return 1
    if not main_process:
        return 0
    print_table(rows, f"{splits.name}, {splits.test.num_classes} unseen classes, percent")
    peak = max((row.get("peak_memory_mb", 0) for row in rows), default=0)
    console.print(
        f"{results['seconds'] / 60:.1f} min, peak memory {peak / 1024:.1f} GB; "
        f"results: {folder / 'results.json'}",
        highlight=False,
        markup=False,
    )
    page = explore_run(folder, splits=splits)
    console.print(f"look at it: {page}", highlight=False, markup=False, soft_wrap=True)
    return 0


def end_now(number: int, frame: FrameType | None) -> None:
    """What SIGTERM does outside of trainings, where nothing has to be saved first."""
    raise Interrupted(number)


def main(argv: Sequence[str] | None = None, program: str = "bgl train") -> int:
    """Train and measure what a command line asks for.

    Args:
        argv: Its words; default: those of this process.
        program: What to repeat before them to go on after an interruption.

    Returns:
        The exit status: 0, 1 for a failed training, 2 for wrong arguments, 128 + the signal that
        stopped it.
    """
    console = Console(quiet=int(os.environ.get("RANK", "0")) > 0)  # one process speaks for all
    before = signal.signal(signal.SIGTERM, end_now)
    try:
        return benchmark(list(sys.argv[1:] if argv is None else argv), console, program)
    except KeyboardInterrupt as stopped:
        console.print(str(stopped) or "interrupted by SIGINT", markup=False, highlight=False)
        return int(getattr(stopped, "status", 128 + signal.SIGINT))
    finally:
        signal.signal(signal.SIGTERM, before)
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
