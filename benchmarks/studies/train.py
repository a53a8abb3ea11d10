"""Training what a study wants: side by side, each in a process of its own."""

from __future__ import annotations

import copy
import csv
import dataclasses
import itertools
import json
import multiprocessing
import os
import shlex
import statistics
import sys
import threading
import time
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks.studies.plan import Entry, Store, Study, Training, resolve, wanted
from bgl.datasets import Splits
from bgl.pipeline import check_folder, load_splits, trained_rows
from bgl.pipeline.outcome import Outcome
from bgl.pipeline.results import RESULT_FILE
from bgl.samplers import ClassBalancedSampler
from bgl.training import Progress as Silent
from bgl.training import TrainConfig, build_encoder
from bgl.training.history import graph_statistics


def run(
    studies: list[Study],
    store: Store,
    folder: Path,
    jobs: int,
    console: Console,
    outcome: Outcome,
) -> None:
    """Train what is missing, and note what fails."""
    running: dict[str, tuple[Training, SpawnProcess, Path]] = {}
    failed: set[str] = set()
    context = multiprocessing.get_context("spawn")  # CUDA does not work after a fork
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeElapsedColumn(), console=console) as bars:
        overall = bars.add_task("trainings", total=None)
        tasks: dict[str, Any] = {}
        try:
            while True:
                every = wanted(studies, store.done)
                open_ones = [k for k in every if not {k} & {*store.done, *running, *failed}]
                finished = sum(key in store.done for key in every)
                bars.update(overall, total=len(every), completed=finished)
                while open_ones and len(running) < jobs:
                    key = open_ones.pop(0)
                    place = folder / every[key].slug
                    process = context.Process(
                        target=_guarded,
                        args=(every[key].command[1:], place, store.measure),
                        daemon=True,
                    )
                    process.start()
                    running[key] = (every[key], process, place)
                    epochs = every[key].config.epochs
                    tasks[key] = bars.add_task(f"  {every[key]}", total=epochs)
                if not running:
                    return
                time.sleep(0.5)
                for key, (training, process, place) in list(running.items()):
                    bars.update(tasks[key], completed=epochs_in(place))
                    if process.is_alive():
                        continue
                    del running[key]
                    bars.remove_task(tasks.pop(key))
                    if process.exitcode == 0:
                        store.add(collect(training, place))
                        console.print(f"done: {training}", markup=False, highlight=False)
                    else:
                        log = place / "error.txt"
                        why = log.read_text() if log.exists() else f"exit {process.exitcode}"
                        failed.add(key)
                        outcome.failed[str(training)] = RuntimeError(why)
        finally:
            for _, process, _ in running.values():
                process.terminate()


def _guarded(command: list[str], folder: Path, measure: str) -> None:
    """Run :func:`work`; leave the reason of a failure in the folder. Ends with its parent."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    (folder / "error.txt").unlink(missing_ok=True)
    try:
        work(command, folder, measure)
    except Exception as error:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "error.txt").write_text(f"{type(error).__name__}: {error}", encoding="utf-8")
        sys.exit(1)


def _end_with_parent() -> None:
    """However the study ends, no training goes on and meets its successor in the same folder."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def work(command: list[str], folder: Path, measure: str) -> None:
    """Train in a process of its own, which reads its images itself: other cores have their own
    trainings, and a process that ends with its parent may start none."""
    torch.set_num_threads(1)
    config = dataclasses.replace(resolve(*command), workers=0)
    splits = measured_splits(config, measure)
    check_folder(config, folder, splits)
    before = untrained_graphs(config, splits)
    trained_rows(config, splits, folder, Silent())
    (folder / "before.json").write_text(json.dumps(before))


def measured_splits(config: TrainConfig, measure: str) -> Splits:
    """Load the data; where "validation" is measured, its classes stand in for the test classes.

    Raises:
        ValueError: If there are no validation classes to measure.
    """
    splits = load_splits(config)
    if measure == "test":
        return splits
    if splits.val is None:
        raise ValueError("Expected argument `val_fraction` to hold out classes to measure, got 0")
    test = copy.copy(splits.val)
    test.class_names = [f"{name} (validation)" for name in test.class_names]
    return dataclasses.replace(splits, test=test, gallery=None)


def untrained_graphs(config: TrainConfig, splits: Splits, batches: int = 4) -> dict[str, float]:
    """Statistics of the graphs that the blocks learn before any training: means over the first
    batches of the first epoch, without augmentation of the images."""
    encoder, _ = build_encoder(config)
    model = encoder.model
    if not model.blocks:
        return {}
    sampler = ClassBalancedSampler(
        splits.train.labels, config.batch_size, config.per_class, config.seed
    )
    found = []
    for batch in itertools.islice(sampler, batches):
        features = encoder.embed(splits.train.subset(batch), output="backbone")
        with torch.no_grad():
            graphs = model.contextualize(features, splits.train.labels[batch], return_graph=True)[1]
        found.append(graph_statistics(graphs))
    return {name: statistics.fmean(row[name] for row in found) for name in found[0]}


def collect(training: Training, folder: Path) -> Entry:
    """Collect what is kept of a finished run."""
    result = json.loads((folder / RESULT_FILE).read_text())
    with (folder / "metrics.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    history = [{n: round(float(v), 6) for n, v in line.items() if v != ""} for line in lines]
    # the configuration stands once; the rest as run.py has it
    rows = [{n: v for n, v in row.items() if n != "config"} for row in result["rows"]]
    on_gpu = rows[0]["peak_gpu_memory_mb"] is not None
    return {
        "command": "python " + shlex.join(training.command),
        "commit": result.get("commit"),
        "device": torch.cuda.get_device_name() if on_gpu else "cpu",
        "epoch": rows[0]["epoch"],
        "config": result["config"],
        "rows": rows,
        "before": json.loads((folder / "before.json").read_text()),
        "history": history,
    }


def epochs_in(folder: Path) -> int:
    """Count the epochs that a run has finished."""
    path = folder / "metrics.csv"
    return max(0, len(path.read_text().splitlines()) - 1) if path.exists() else 0
