"""Compare methods over seeds: ``python -m benchmarks.studies configs/studies/emoji.yaml``

The YAML file names the arms of the study by their options of run.py, the seeds, a grid that every
arm is tuned on (by validation MAP@R, with few seeds) and sweeps over single options. With
``measure: validation`` the test classes are not looked at. Trainings run side by side, one thread
each, on a GPU if there is one. What is finished is kept in the results file: repeat the command
after an interruption, or to go on with a study somebody else began (``--results``). Studies that
measure the same classes are trained together, into one file, when all of them are named.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from functools import partial
from pathlib import Path

import torch
from rich.console import Console

from benchmarks.schedule import run_all
from benchmarks.studies.plan import Store, Study, wanted
from benchmarks.studies.train import measured_splits, run
from bgl.pipeline import baseline_rows, pixel_rows
from bgl.training import Progress


def main(argv: list[str] | None = None) -> int:
    """Run a study; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.studies",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "studies", type=Path, nargs="+", metavar="STUDY", help="YAML file of a study"
    )
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="trainings at a time")
    parser.add_argument(
        "--output-dir", type=Path, help="run folders (runs/studies/NAME of the first)"
    )
    parser.add_argument(
        "--results", type=Path, help="file to go on from and add to (results.json in the folder)"
    )
    parser.add_argument("--list", action="store_true", help="show what is open, train nothing")
    options = parser.parse_args(argv)
    console = Console(width=None if sys.stdout.isatty() else 200)
    os.environ["OMP_NUM_THREADS"] = "1"  # for the processes that are started
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends as Ctrl-C does
    folder = options.output_dir or Path("runs/studies") / options.studies[0].stem
    try:
        studies = [Study.load(path) for path in options.studies]
        if len(measures := {study.measure for study in studies}) > 1:
            raise ValueError("Expected all studies to measure the same classes, got both kinds")
        store = Store(options.results or folder / "results.json", *measures)
        if options.list:
            for key, training in wanted(studies, store.done).items():
                state = "done" if key in store.done else "open"
                console.print(f"{state}  {training}", markup=False, highlight=False)
            return 0
        if not store.untrained:
            torch.set_num_threads(1)
            first = next(studies[0].possible()).config
            splits = measured_splits(first, store.measure)
            rows = [*pixel_rows(first, splits), *baseline_rows(first, splits, Progress())]
            with store.changing():
                store.untrained = [dict(row) for row in rows]
        train = partial(run, studies, store, folder, options.jobs, console)
        return run_all(train, console)
    except (ValueError, OSError) as error:
        console.print(f"error: {error}", style="red", markup=False, soft_wrap=True)
        return 2
