"""The command ``bgl``: learn a graph of every batch, train image encoders through it.

bgl train …           train and measure
bgl check DATA        look at a folder of images before training: broken, duplicates, leaks
bgl eval RUN          measure a trained model on a dataset
bgl explore RUN …     write the explorer page of a run, or of several
bgl search …          index images with a trained model, find the nearest
bgl datasets [NAME]   list the datasets, check or fetch one

bgl COMMAND --help    says more of each
--plugin MODULE       with any command: import your own blocks, losses, datasets … first
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import bgl
from bgl._plugins import import_plugins
from bgl._usage import Parser, as_on_the_command_line, check_train_words, notes

__all__ = ["main"]

DATA = ("dataset", "data_root", "table", "skip_broken", "allow_partial")

FIRST_STEPS = """\
bgl trains image encoders through a graph of each batch. To begin:

  bgl train --epochs 2                             try it on the packaged emoji, a minute or two
  bgl check photos                                 your images (photos/CLASS/*.jpg): are they fit?
  bgl train --dataset folder --data-root photos    train on them, and measure
  bgl --help                                       the other commands
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status: 0, 2 for a wrong argument or a missing package."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words:
        print(FIRST_STEPS, end="")
        return 0
    try:
        with notes():
            return _run(words)
    except (ImportError, ValueError, OSError, MemoryError) as error:
        print(f"error: {as_on_the_command_line(str(error))}", file=sys.stderr)
        return 2


def _run(words: list[str]) -> int:
    words, plugins = import_plugins(words)
    name, rest = (words or [""])[0], words[1:]
    if name in ("-h", "--help"):
        print(__doc__, end="")
        return 0
    if name == "--version":
        print(f"bgl {bgl.__version__}")
        return 0
    if name not in COMMANDS:
        close = get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {close[0]}? " if close else ""
        raise ValueError(f"There is no command {name!r}: {hint}bgl --help lists them")
    if name == "train":  # which repeats them in what it says
        rest += [word for plugin in plugins for word in ("--plugin", plugin)]
    return COMMANDS[name](rest)


def train(argv: Sequence[str]) -> int:
    """Train and measure, as ``python benchmarks/run.py`` does."""
    check_train_words(argv)
    from bgl.pipeline import main as run

    return run(argv)


def evaluate(argv: Sequence[str]) -> int:
    """Measure retrieval on the test classes of a dataset, a line per embedding.

    Without --dataset: on the data that the model was trained on, as its config.yaml says.
    """
    parser = Parser(prog="bgl eval", description=evaluate.__doc__)
    parser.add_argument("run", help="Folder with model.json, or hf-hub:USER/NAME.")
    parser.add_argument("--dataset", help="Name of a dataset; default: the run's, else emoji.")
    _add_dataset(parser)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument(
        "--device", default="auto", help='"cpu", "cuda", … (a GPU if there is one).'
    )
    parser.add_argument(
        "--workers", type=int, default=-1, help="Processes that load images (one per core)."
    )
    options = parser.parse_args(argv)
    from bgl.models import load
    from bgl.pipeline import load_splits, read_config
    from bgl.training import TrainConfig, evaluate_encoder

    encoder = load(options.run, options.device)
    given = {name: value for name in DATA if (value := getattr(options, name)) is not None}
    config = TrainConfig()
    if options.dataset is None and Path(options.run, "config.yaml").is_file():
        config = read_config(Path(options.run))
    splits = load_splits(dataclasses.replace(config, **{**given, "download": False}))
    among = f"{splits.name}: retrieval among the {splits.test.num_classes} test classes"
    print(f"{among}; the model's embedding: {encoder.config.embedding}")
    metrics = evaluate_encoder(encoder, splits, options.batch_size, options.workers)
    for embedding, values in metrics.items():
        cells = [f"{k} {v:.4f}" if isinstance(v, float) else f"{k} {v}" for k, v in values.items()]
        print(f"test {embedding}: {', '.join(cells)}")
    return 0


def explore(argv: Sequence[str]) -> int:
    """Write one HTML page to look at a run of bgl train in a browser."""
    parser = Parser(prog="bgl explore", description=explore.__doc__)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="Folders of runs.")
    parser.add_argument("--page", help="HTML file to write (explorer.html in the first run).")
    options = parser.parse_args(argv)
    from bgl.pipeline import explore_run

    print(f"look at it: {explore_run(options.runs, options.page)}")
    return 0


def search(argv: Sequence[str]) -> int:
    """Search images, as ``python -m bgl.search`` does."""
    from bgl.search.__main__ import main as run

    return run(argv, "bgl search")


def check(argv: Sequence[str]) -> int:
    """Look at images before training: classes, sizes, broken files, duplicates, leaks.

    The exit status is 1 where training refuses the data, or where training and test share an image.
    """
    parser = Parser(prog="bgl check", description=check.__doc__)
    parser.add_argument("data", help="Folder with CLASS/* or train/CLASS/* …, or a CSV table.")
    parser.add_argument("--data-root", help="What the paths of a table are relative to.")
    parser.add_argument("--page", help="HTML file to write, with pictures.")
    options = parser.parse_args(argv)
    from bgl.checking import check_images, write_page

    report = check_images(options.data, options.data_root)
    print(report)
    if options.page:
        print(f"look at it: {write_page(report, options.page)}")
    return 0 if report.fit else 1


def datasets(argv: Sequence[str]) -> int:
    """List the names of the datasets; with one of them, what is in it."""
    parser = Parser(prog="bgl datasets", description=datasets.__doc__)
    parser.add_argument("dataset", nargs="?", help="Name of a dataset.")
    _add_dataset(parser)
    parser.add_argument("--download", action="store_true", help="Fetch it to --data-root first.")
    options = parser.parse_args(argv)
    from bgl.datasets import dataset_names, download, load_dataset

    if options.dataset is None:
        print("\n".join(dataset_names()))
        return 0
    if options.download:
        if options.data_root is None:
            raise ValueError("Expected --data-root DIR with --download, got none")
        download(options.dataset, options.data_root)
    given = {name: value for name in DATA[2:] if (value := getattr(options, name)) is not None}
    splits = load_dataset(options.dataset, options.data_root, **given)
    print(splits)
    print(f"digest: {splits.digest}")
    return 0


def _add_dataset(parser: argparse.ArgumentParser) -> None:
    """Add options for where a dataset is and how it is read; None if not given."""
    parser.add_argument("--data-root", help="Folder of the dataset.")
    parser.add_argument("--table", help='CSV file of the dataset "table".')
    yes: dict[str, Any] = {"action": "store_const", "const": True}
    parser.add_argument("--skip-broken", **yes, help="Leave out broken images.")
    parser.add_argument("--allow-partial", **yes, help="Go on without some images.")


COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "train": train,
    "check": check,
    "eval": evaluate,
    "explore": explore,
    "search": search,
    "datasets": datasets,
}

if __name__ == "__main__":
    sys.exit(main())
