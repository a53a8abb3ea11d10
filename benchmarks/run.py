"""Train and measure the whole pipeline: ``python benchmarks/run.py [--dataset emoji] ...``

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
import platform
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from types import FrameType
from typing import Any

import timm
import torch
import torch_geometric
import yaml
from accelerate.utils import broadcast_object_list
from options import CONFIGS, parse, write_command
from report import print_table
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

import bgl
from bgl._io import write_text
from bgl.datasets import Splits, download, load_dataset, raw_pixels
from bgl.metrics import retrieval_metrics
from bgl.training import (
    Interrupted,
    Progress,
    Several,
    TrainConfig,
    View,
    build_model,
    make_accelerator,
    recall_at,
    train,
)
from bgl.visualization import explore_run
from bgl.visualization.recorder import Recorder
from bgl.visualization.tracking import Trackers, check_trackers

Row = dict[str, Any]


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


def load_splits(config: TrainConfig) -> Splits:
    """The data a configuration names; without validation classes in the protocol "paper"."""
    if config.download and config.data_root is not None:
        download(config.dataset, config.data_root)
    paper = config.protocol == "paper"
    splits = load_dataset(
        config.dataset,
        config.data_root,
        val_fraction=0.0 if paper else config.val_fraction,
        skip_broken=config.skip_broken,
        allow_partial=config.allow_partial,
        table=config.table,
    )
    # packaged data have fixed validation classes, which nothing looks at then
    return dataclasses.replace(splits, val=None) if paper else splits


def baseline_rows(config: TrainConfig, splits: Splits, progress: Progress) -> list[Row]:
    """What no training is needed for: raw pixels, and the pretrained encoder as it is."""
    gallery = splits.gallery
    model, info = build_model(dataclasses.replace(config, method="none"))
    accelerator = make_accelerator(config.device)
    view = View(model.to(accelerator.device), config, info, accelerator, progress)
    measured = view.measure(splits.test, gallery)
    if not accelerator.is_main_process:
        return []
    pixels = retrieval_metrics(
        raw_pixels(splits.test),
        splits.test.labels,
        None if gallery is None else raw_pixels(gallery),
        None if gallery is None else gallery.labels,
        k=recall_at(config.dataset),
    )
    return [
        {"method": "pixels", "seed": None, "embedding": "pixels", "metrics": pixels},
        {
            "method": "pretrained",
            "seed": None,
            "embedding": "backbone",
            "metrics": measured["backbone"],
            "backbone": dataclasses.asdict(info),
        },
    ]


def trained_rows(
    config: TrainConfig,
    splits: Splits,
    folder: Path,
    progress: Progress,
    trackers: Sequence[str] = (),
) -> list[Row]:
    """Train one configuration (or take its finished result) and describe each embedding."""
    resolved = dataclasses.asdict(config)
    finished = folder / "result.json"
    if finished.exists():
        return list(json.loads(finished.read_text())["rows"])
    if not make_accelerator(config.device).is_main_process:
        train(config, splits, folder)
        return []
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "config.yaml", yaml.safe_dump(resolved, sort_keys=False))
    recorder = Recorder(folder, splits)
    listeners: list[Progress] = [recorder, progress]
    tracked = Trackers(trackers, folder / "logs", recorder) if trackers else None
    if tracked is not None:
        listeners.insert(1, tracked)
    try:
        result = train(config, splits, folder, Several(*listeners))
    finally:
        if tracked is not None:
            tracked.finish()
    recorder.finish()
    rows: list[Row] = [
        {
            "method": config.method,
            "seed": config.seed,
            "embedding": embedding,
            "metrics": metrics,
            "protocol": config.protocol,
            "loss": config.loss,
            "augmentation": config.augmentation,
            "epoch": result.chosen_epoch,
            "epochs": config.epochs,
            "graph_at_test_time": False,
            "distance": config.distance if embedding == "head" else "cosine",
            "dimension": result.dimensions[embedding],
            "backbone": dataclasses.asdict(result.backbone),
            "parameters": result.num_parameters,
            "seconds": result.seconds,
            "peak_memory_mb": result.peak_memory_mb,
            "skipped_steps": sum(row.get("skipped_steps", 0) for row in result.history),
            **other_epochs(result.history, embedding),
            "config": resolved,
        }
        for embedding, metrics in result.metrics.items()
    ]
    write_text(finished, json.dumps({"config": resolved, "rows": rows}, indent=1))
    (folder / "checkpoint.pt").unlink(missing_ok=True)
    return rows


def other_epochs(history: list[Row], embedding: str) -> dict[str, dict[str, float]]:
    """Test metrics of the last epoch, and each metric's best over the epochs (optimistic), where
    the test classes were looked at after every epoch."""
    start = f"test_{embedding}_"
    looks = [
        {name.removeprefix(start): value for name, value in row.items() if name.startswith(start)}
        for row in history
    ]
    if not all(looks):
        return {}
    best = {name: max(look[name] for look in looks) for name in looks[0]}
    return {"last_epoch": looks[-1], "best_on_test": best}


def check_folder(config: TrainConfig, folder: Path) -> None:
    """Refuse a folder with the result or the checkpoint of another configuration.

    Raises:
        ValueError: If there is one; the message names the fields that differ.
    """
    if (folder / "result.json").exists():
        stored = json.loads((folder / "result.json").read_text())["config"]
    elif (folder / "checkpoint.pt").exists():
        stored = yaml.safe_load((folder / "config.yaml").read_text())
    else:
        return
    config.check_stored(stored, folder)


def describe(config: TrainConfig, splits: Splits) -> dict[str, Any]:
    """What a reader needs to know to trust the numbers."""
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=CONFIGS, capture_output=True, text=True, check=False
    ).stdout.strip()
    parts = {
        name: {"classes": part.num_classes, "images": len(part)}
        for name in ("train", "val", "test", "gallery")
        if (part := getattr(splits, name)) is not None
    }
    return {
        "dataset": {
            "name": splits.name,
            "digest": splits.digest,
            **parts,
            "skipped": list(splits.skipped),
        },
        **selection(config, splits),
        "image_size": config.image_size,
        "device": str(make_accelerator(config.device).device),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, "
        f"{torch.get_num_threads()} threads",
        "versions": {
            "bgl": bgl.__version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "torch_geometric": torch_geometric.__version__,
            "timm": timm.__version__,
        },
        "commit": commit or None,
    }


def selection(config: TrainConfig, splits: Splits) -> dict[str, Any]:
    """How the epoch is chosen, and how many epochs' weights the test classes are shown."""
    if config.protocol == "paper":
        looks = -(-config.epochs // config.eval_every)
        how = f"best of {looks} by test Recall@1 of the {config.select_embedding} embedding"
        how = how if looks > 1 else "last epoch"
        return {
            "protocol": "paper-style, optimistic: trained on all train classes",
            "selection": how,
            "test_evaluations": looks,
        }
    how = f"best validation MAP@R of the {config.select_embedding} embedding"
    how = how if splits.val is not None else "last epoch"
    looks = 1 + config.epochs * config.test_every_epoch
    return {"protocol": "honest", "selection": how, "test_evaluations": looks}


def benchmark(argv: list[str], console: Console) -> int:
    """Understand the command line, check everything that can be checked, train and measure."""

    def complain(error: Exception) -> None:
        line = escape(" ".join(str(error).split()))
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
            save(baseline_rows(first, splits, Several(pretrained, progress)))
            if main_process:
                pretrained.finish()
            for place, config in runs.items():
                console.print(f"[bold]{place.name}[/]")
                save(trained_rows(config, splits, place, progress, command.trackers))
    except KeyboardInterrupt:
        words = shlex.join(["python", sys.argv[0], "--resume", str(folder)])
        console.print(f"\nto go on: {words}", markup=False, highlight=False, soft_wrap=True)
        raise
    except (ValueError, OSError, FloatingPointError) as error:
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


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark; returns the exit status."""
    console = Console(quiet=int(os.environ.get("RANK", "0")) > 0)  # one process speaks for all
    before = signal.signal(signal.SIGTERM, end_now)
    try:
        return benchmark(sys.argv[1:] if argv is None else argv, console)
    except KeyboardInterrupt as stopped:
        console.print(str(stopped) or "interrupted by SIGINT", markup=False, highlight=False)
        return int(getattr(stopped, "status", 128 + signal.SIGINT))
    finally:
        signal.signal(signal.SIGTERM, before)
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


if __name__ == "__main__":
    sys.exit(main())
