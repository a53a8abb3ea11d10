"""Compare methods over seeds: ``python benchmarks/study.py configs/studies/emoji.yaml``

The YAML file names the arms of the study by their options of run.py, the seeds, a grid that every
arm is tuned on (by validation MAP@R, with few seeds) and sweeps over single options. Trainings run
side by side, one thread each. What is finished is kept in the results file: repeat the command
after an interruption, or to go on with a study somebody else began (``--results``).
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import itertools
import json
import multiprocessing
import os
import shlex
import signal
import statistics
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

import torch
import yaml
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from bgl._checks import check_choice
from bgl._io import write_text
from bgl.datasets import Splits
from bgl.models import BLOCKS
from bgl.pipeline import baseline_rows, check_folder, load_splits, parse, trained_rows
from bgl.samplers import ClassBalancedSampler
from bgl.training import Progress as Silent
from bgl.training import TrainConfig, View, build_model, make_accelerator
from bgl.training.loop import graph_statistics

Options = dict[str, Any]  # options of run.py without their dashes


@dataclass(frozen=True)
class Training:
    """One training: an arm, what differs from run.py's defaults, and the seed."""

    arm: str
    options: Options
    seed: int

    @property
    def command(self) -> list[str]:
        """The words that repeat it alone."""
        words = [(f"--{name}", _word(value)) for name, value in self.options.items()]
        return ["benchmarks/run.py", *itertools.chain(*words), "--seed", str(self.seed)]

    @property
    def config(self) -> TrainConfig:
        """The resolved configuration."""
        return resolve(*self.command[1:])

    @property
    def key(self) -> str:
        """The same for trainings that differ in nothing that could change their result."""
        return key_of(*self.command[1:])

    def __str__(self) -> str:
        given = " ".join(f"{name}={_word(value)}" for name, value in self.options.items())
        return f"{self.arm}, seed {self.seed} ({given})"


@cache
def resolve(*words: str) -> TrainConfig:
    """The configuration of a training, given the words after ``run.py``."""
    configs = parse(list(words)).configs
    if len(configs) != 1:
        raise ValueError(f"Expected the options of an arm to name one `method`, got {words}")
    return configs[0]


@cache
def key_of(*words: str) -> str:
    """:func:`config_key` of the configuration that the words name."""
    return config_key(dataclasses.asdict(resolve(*words)))


def config_key(values: dict[str, Any]) -> str:
    """All of a configuration that can change a result, as text. What ``values`` lack is newer
    than them and had its default then."""
    config = dataclasses.asdict(TrainConfig())
    for name, default in config.items():
        given = values.get(name, default)
        config[name] = {**default, **given} if isinstance(default, dict) else given
    unused = {"device", "workers", *BLOCKS} - set(config["method"].split("+"))
    if config["method"] == "none":
        unused.add("alpha")
    if config["augmentation"] == "none":
        unused.add("iaa")
    return json.dumps({name: value for name, value in config.items() if name not in unused})


@dataclass
class Sweep:
    """Other values of one option of an arm."""

    arm: str
    option: str
    values: list[Any]
    seeds: list[int]


@dataclass
class Study:
    """What a study's YAML file says.

    Args:
        arms: Options of run.py by the arm's name.
        seeds: Seeds of every arm.
        baselines: By arm, the arm it is compared with.
        controls: By arm, further arms it is compared with.
        base: Options of all arms.
        grid: Values by option; each arm is trained with every combination.
        grid_seeds: Seeds the combination is chosen with, by mean validation MAP@R.
        sweeps: By name, see :class:`Sweep`; they keep what the grid chose for their arm.
    """

    arms: dict[str, Options]
    seeds: list[int]
    baselines: dict[str, str] = field(default_factory=dict)
    controls: dict[str, list[str]] = field(default_factory=dict)
    base: Options = field(default_factory=dict)
    grid: dict[str, list[Any]] = field(default_factory=dict)
    grid_seeds: list[int] = field(default_factory=list)
    sweeps: dict[str, Sweep] = field(default_factory=dict)

    @classmethod
    def load(cls, path: Path) -> Study:
        """Read a file.

        Raises:
            ValueError: If a field is unknown or missing, or names no arm or option.
        """
        values = yaml.safe_load(path.read_text())
        if not isinstance(values, dict):
            raise ValueError(f"Expected {path} to hold the fields of a study, got {values!r}")
        try:
            sweeps = {n: Sweep(**v) for n, v in (values.pop("sweeps", None) or {}).items()}
            study = cls(**values, sweeps=sweeps)
        except TypeError as error:
            raise ValueError(f"Expected {path} to hold the fields of a study: {error}") from None
        named = [*study.baselines.items(), *study.controls.items()]
        others = [name for _, given in named for name in ([given] if type(given) is str else given)]
        for arm in (*dict(named), *others, *(s.arm for s in sweeps.values())):
            check_choice(arm, "arm", tuple(study.arms))
        for training in study.possible():
            _ = training.config  # refuses unknown options and values
        return study

    def combinations(self, arm: str) -> list[Options]:
        """The options of an arm for every point of the grid."""
        points = itertools.product(*self.grid.values())
        # an arm's own options win, so that an arm can be kept off a part of the grid
        arms = [
            {**self.base, **dict(zip(self.grid, p, strict=True)), **self.arms[arm]} for p in points
        ]
        return [options for i, options in enumerate(arms) if options not in arms[:i]]

    def chosen(self, arm: str, done: dict[str, dict[str, Any]]) -> Options | None:
        """The point of the grid with the best mean validation MAP@R, None while unknown."""
        points = self.combinations(arm)
        if len(points) == 1:
            return points[0]
        scores = []
        for options in points:
            trained = [done.get(Training(arm, options, seed).key) for seed in self.grid_seeds]
            if any(entry is None for entry in trained):
                return None
            scores.append(statistics.fmean(validation(entry) for entry in trained if entry))
        return points[scores.index(max(scores))]

    def wanted(self, done: dict[str, dict[str, Any]]) -> Iterator[Training]:
        """The trainings that are known to be needed, the most telling first."""
        for seed in self.grid_seeds:
            for arm in self.arms:
                points = self.combinations(arm)
                if len(points) > 1:
                    yield from (Training(arm, options, seed) for options in points)
        chosen = {arm: self.chosen(arm, done) for arm in self.arms}
        for seed in self.seeds:
            for arm, options in chosen.items():
                if options is not None:
                    yield Training(arm, options, seed)
        for sweep in self.sweeps.values():
            if (options := chosen[sweep.arm]) is not None:
                yield from self.swept(sweep, options)

    def swept(self, sweep: Sweep, options: Options) -> list[Training]:
        """The trainings of a sweep."""
        values = [{**options, sweep.option: value} for value in sweep.values]
        return [Training(sweep.arm, v, seed) for seed in sweep.seeds for v in values]

    def possible(self) -> Iterator[Training]:
        """One training of every combination and swept value."""
        for arm in self.arms:
            yield from (Training(arm, options, 0) for options in self.combinations(arm))
        for sweep in self.sweeps.values():
            yield from self.swept(sweep, self.combinations(sweep.arm)[0])


def _word(value: Any) -> str:
    """A value as run.py reads it."""
    return value if isinstance(value, str) else json.dumps(value)


def validation(entry: dict[str, Any]) -> float:
    """Validation MAP@R of a finished training, in the epoch it chose."""
    column = f"val_{entry['config']['select_embedding']}_map@r"
    return float(entry["history"][entry["epoch"] - 1][column])


def work(command: list[str], folder: Path) -> None:
    """Train in a process of its own."""
    torch.set_num_threads(1)
    config = resolve(*command)
    check_folder(config, folder)
    splits = load_splits(config)
    before = untrained_graphs(config, splits)
    trained_rows(config, splits, folder, Silent())
    write_text(folder / "before.json", json.dumps(before))


def untrained_graphs(config: TrainConfig, splits: Splits, batches: int = 4) -> dict[str, float]:
    """Statistics of the graphs that the blocks learn before any training: means over the first
    batches of the first epoch, without augmentation of the images."""
    model, info = build_model(config)
    if not model.blocks:
        return {}
    view = View(model, config, info, make_accelerator("cpu"), Silent())
    sampler = ClassBalancedSampler(
        splits.train.labels, config.batch_size, config.per_class, config.seed
    )
    found = []
    for batch in itertools.islice(sampler, batches):
        features = view.embed(splits.train.subset(batch))["backbone"]
        with torch.no_grad():
            graphs = model.contextualize(features, splits.train.labels[batch], return_graph=True)[1]
        found.append(graph_statistics(graphs))
    return {name: statistics.fmean(row[name] for row in found) for name in found[0]}


def collect(training: Training, folder: Path) -> dict[str, Any]:
    """What is kept of a finished training."""
    result = json.loads((folder / "result.json").read_text())
    with (folder / "metrics.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    history = [{n: round(float(v), 6) for n, v in line.items() if v != ""} for line in lines]
    # the configuration stands once; the rest as run.py has it
    rows = [{n: v for n, v in row.items() if n != "config"} for row in result["rows"]]
    return {
        "command": "python " + shlex.join(training.command),
        "epoch": rows[0]["epoch"],
        "config": result["config"],
        "rows": rows,
        "before": json.loads((folder / "before.json").read_text()),
        "history": history,
    }


class Store:
    """What is finished of a study, in one JSON file: the rows that need no training, and a line
    for each training."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.untrained: list[dict[str, Any]] = []
        self.done: dict[str, dict[str, Any]] = {}
        if path.exists():
            content = json.loads(path.read_text())
            self.untrained = content["untrained"]
            self.done = {config_key(entry["config"]): entry for entry in content["trainings"]}

    def add(self, entry: dict[str, Any]) -> None:
        """Keep a training."""
        self.done[config_key(entry["config"])] = entry
        self.write()

    def write(self) -> None:
        """Write the file anew."""
        parts = (self.untrained, list(self.done.values()))
        untrained, trainings = (",\n".join(map(json.dumps, part)) for part in parts)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        text = f'{{"untrained": [\n{untrained}\n],\n"trainings": [\n{trainings}\n]}}\n'
        write_text(self.path, text)


def run(study: Study, store: Store, folder: Path, jobs: int, console: Console) -> list[str]:
    """Train what is missing; returns the trainings that failed."""
    running: dict[str, tuple[Training, SpawnProcess, Path]] = {}
    failed: dict[str, str] = {}
    context = multiprocessing.get_context("spawn")
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeElapsedColumn(), console=console) as bars:
        overall = bars.add_task("trainings", total=None)
        tasks: dict[str, Any] = {}
        try:
            while True:
                wanted = {training.key: training for training in study.wanted(store.done)}
                open_ones = [k for k in wanted if not {k} & {*store.done, *running, *failed}]
                finished = sum(key in store.done for key in wanted)
                bars.update(overall, total=len(wanted), completed=finished)
                while open_ones and len(running) < jobs:
                    key = open_ones.pop(0)
                    place = folder / slug(wanted[key])
                    process = context.Process(
                        target=_guarded, args=(wanted[key].command[1:], place), daemon=True
                    )
                    process.start()
                    running[key] = (wanted[key], process, place)
                    epochs = wanted[key].config.epochs
                    tasks[key] = bars.add_task(f"  {wanted[key]}", total=epochs)
                if not running:
                    return list(failed.values())
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
                        failed[key] = f"{training}: {why}"
        finally:
            for _, process, _ in running.values():
                process.terminate()


def _guarded(command: list[str], folder: Path) -> None:
    """:func:`work`, with the reason of a failure left in the folder. Ends with its parent."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    (folder / "error.txt").unlink(missing_ok=True)
    try:
        work(command, folder)
    except Exception as error:
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / "error.txt", f"{type(error).__name__}: {error}")
        sys.exit(1)


def _end_with_parent() -> None:
    """However the study ends, no training goes on and meets its successor in the same folder."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def epochs_in(folder: Path) -> int:
    """How many epochs a training has finished."""
    path = folder / "metrics.csv"
    return max(0, len(path.read_text().splitlines()) - 1) if path.exists() else 0


def slug(training: Training) -> str:
    """A folder name for a training."""
    given = "-".join(f"{name}={_word(value)}" for name, value in training.options.items())
    name = f"{training.arm}-{given}-seed{training.seed}"
    return "".join(c if c.isalnum() or c in "-=+._" else "_" for c in name)


def main(argv: list[str] | None = None) -> int:
    """Run a study; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="study.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("study", type=Path, help="YAML file of the study")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="trainings at a time")
    parser.add_argument("--output-dir", type=Path, help="run folders (runs/studies/NAME)")
    parser.add_argument(
        "--results", type=Path, help="file to go on from and add to (results.json in the folder)"
    )
    parser.add_argument("--list", action="store_true", help="show what is open, train nothing")
    options = parser.parse_args(argv)
    console = Console(width=None if sys.stdout.isatty() else 200)
    os.environ["OMP_NUM_THREADS"] = "1"  # for the processes that are started
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends as Ctrl-C does
    folder = options.output_dir or Path("runs/studies") / options.study.stem
    try:
        study = Study.load(options.study)
        store = Store(options.results or folder / "results.json")
        if options.list:
            wanted = {training.key: training for training in study.wanted(store.done)}
            for key, training in wanted.items():
                state = "done" if key in store.done else "open"
                console.print(f"{state}  {training}", markup=False, highlight=False)
            return 0
        if not store.untrained:
            torch.set_num_threads(1)
            first = next(study.possible()).config
            store.untrained = baseline_rows(first, load_splits(first), Silent())
            store.write()
        failed = run(study, store, folder, options.jobs, console)
    except (ValueError, OSError) as error:
        console.print(f"error: {error}", style="red", markup=False, soft_wrap=True)
        return 2
    except KeyboardInterrupt:
        console.print("\nstopped; to go on, repeat the command")
        return 130
    for line in failed:
        console.print(f"failed: {line}", style="red", markup=False, soft_wrap=True)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
