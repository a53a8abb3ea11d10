"""The command ``bgl``: learn a graph of every batch, train image encoders through it.

bgl train …           train and measure
bgl adapt MODEL …     adapt a model to images without labels
bgl check DATA        look at a folder of images before training: broken, duplicates, leaks
bgl eval RUN          measure a trained model on a dataset
bgl refine RUN        refine the embeddings of a dataset without labels; will it help?
bgl explore RUN …     write the explorer page of a run, or of several
bgl search …          index images with a trained model, find the nearest
bgl embed RUN DATA    embed very many images into files, by many processes
bgl datasets [NAME]   list the datasets, check or fetch one

bgl COMMAND --help    says more of each
--plugin MODULE       with any command: import your own blocks, losses, datasets … first
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import signal
import sys
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import bgl
from bgl._plugins import import_plugins
from bgl._usage import Parser, as_on_the_command_line, check_train_words, notes, option

__all__ = ["main"]

DATA = ("dataset", "data_root", "table", "skip_broken", "allow_partial")

FIRST_STEPS = """\
bgl trains image encoders, with or without a graph of each batch. To begin:

  bgl train --quick                                a tour on the packaged emoji, two minutes
  bgl check photos                                 your images (photos/CLASS/*.jpg): are they fit?
  bgl train --dataset folder --data-root photos    train on them, and measure
  bgl adapt MODEL images --output-dir adapted      adapt a model to images without labels
  bgl embed MODEL images --out embeddings          embed very many images
  bgl refine MODEL images --check                  would the graph of all of them help?
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
    parser.add_argument("run", help="Folder with model.json, emoji, or hf-hub:USER/NAME.")
    _add_measured(parser)
    options = parser.parse_args(argv)
    from bgl.models import load
    from bgl.training import evaluate_encoder

    encoder, splits = load(options.run, options.device), _splits(options)
    among = f"{splits.name}: retrieval among the {splits.test.num_classes} test classes"
    print(f"{among}; the model's embedding: {encoder.config.embedding}")
    metrics = evaluate_encoder(encoder, splits, options.batch_size, options.workers)
    for embedding, values in metrics.items():
        print(f"test {embedding}: {_cells(values)}")
    return 0


def refine(argv: Sequence[str]) -> int:
    """Refine the embeddings of a dataset's test classes without labels, and measure both.

    With --check: estimate, without labels, what refining them would change, and recommend a
    setting; also for IMAGES of your own.
    """
    parser = Parser(prog="bgl refine", description=refine.__doc__)
    parser.add_argument("run", help="Folder with model.json, emoji, or hf-hub:USER/NAME.")
    parser.add_argument("images", nargs="*", help="With --check: image files and folders.")
    parser.add_argument("--check", action="store_true", help="Will it help? Needs no labels.")
    parser.add_argument("-k", type=int, default=7, help="Number of neighbours (7).")
    parser.add_argument("--epsilon", type=float, default=0.5, help="Their share in the mix (0.5).")
    _add_measured(parser)
    options = parser.parse_args(argv)
    if options.images and not options.check:
        raise ValueError(
            "Expected --check with images of your own: what refining changes is measured on a "
            "--dataset, whose classes are known"
        )
    if options.images and any(getattr(options, name) is not None for name in DATA):
        raise ValueError("Expected images or a --dataset, got both")
    setting = {"k": options.k, "epsilon": options.epsilon}
    from bgl.models import load
    from bgl.pipeline.refined import check_refinement, measure_refined

    encoder = load(options.run, options.device)
    work = {"batch_size": options.batch_size, "workers": options.workers}
    if options.check:
        data: Any = options.images or _splits(options)
        print(check_refinement(encoder, data, **work, **setting))
        return 0
    splits = _splits(options)
    print(f"{splits.name}: retrieval among the {splits.test.num_classes} test classes")
    for name, values in measure_refined(encoder, splits, **work, **setting).items():
        print(f"test {name}: {_cells(values)}")
    return 0


def _cells(values: dict[str, float]) -> str:
    return ", ".join(
        f"{k} {v:.4f}" if isinstance(v, float) else f"{k} {v}" for k, v in values.items()
    )


def _splits(options: argparse.Namespace) -> Any:
    """Load the data that are named, or those that the run was trained on."""
    from bgl.models.files import is_name
    from bgl.pipeline import load_splits, read_config
    from bgl.training import TrainConfig

    given = {name: value for name in DATA if (value := getattr(options, name)) is not None}
    config, run = TrainConfig(), Path(options.run)
    own = options.dataset is None and not is_name(options.run)
    if own and (run / "config.yaml").is_file():
        config = read_config(run)
    return load_splits(dataclasses.replace(config, **{**given, "download": False}))


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


def adapt(argv: Sequence[str]) -> int:
    """Adapt an encoder to images without labels, through the graph of all of them.

    A command that was interrupted is resumed by repeating it.
    """
    parser = Parser(prog="bgl adapt", description=adapt.__doc__)
    parser.add_argument(
        "model", help="Folder with model.json, emoji, hf-hub:USER/NAME, or a backbone of timm."
    )
    parser.add_argument("images", nargs="+", help="Image files, and folders to search for them.")
    parser.add_argument("--output-dir", required=True, help="Folder for the adapted model.")
    parser.add_argument("--measure", help="Labelled images to measure: a folder, or emoji.")
    parser.add_argument("--image-size", type=int, help="For a pretrained backbone (224).")
    numbers = {"epochs": 10, "patience": 2, "k": 7, "batch_size": 128, "group": 4, "seed": 0}
    for name, default in numbers.items():
        parser.add_argument(option(name), type=int, default=default, help=f"({default})")
    parser.add_argument("--lr", type=float, help="Learning rate.")
    parser.add_argument("--device", default="auto", help='"cpu", "cuda" (a GPU if there is one).')
    parser.add_argument(
        "--workers", type=int, default=-1, help="Processes that load images (one per core)."
    )
    options = vars(parser.parse_args(argv))
    from bgl.pipeline import adapt as run

    try:
        run(**{name: value for name, value in options.items() if value is not None})
    except KeyboardInterrupt as stopped:
        print(f"{stopped or 'interrupted'}; to go on, repeat the command", file=sys.stderr)
        return int(getattr(stopped, "status", 130))
    return 0


def embed(argv: Sequence[str]) -> int:
    """Embed very many images into shards of Parquet, by any number of processes.

    The same command again, here or on other machines that share --out, continues and helps.
    """
    parser = Parser(prog="bgl embed", description=embed.__doc__)
    parser.add_argument("run", help="Folder with model.json, emoji, or hf-hub:USER/NAME.")
    parser.add_argument(
        "images",
        nargs="+",
        help="Folders, CSV tables (path,label), tars (photos-{000..099}.tar), Parquet files, saved "
        "Hugging Face datasets.",
    )
    parser.add_argument("--out", required=True, help="Folder to write.")
    parser.add_argument("--output", default="default", help="Which of the model's embeddings.")
    parser.add_argument(
        "--dtype", default="float32", help='"float32", or "float16": half the size.'
    )
    parser.add_argument(
        "--shard-size", type=int, default=10_000, help="Most images of a file (10000)."
    )
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument(
        "--device", default="auto", help='"cpu", "cuda", … (a GPU if there is one).'
    )
    parser.add_argument(
        "--workers", type=int, default=-1, help="Processes that load images (one per core)."
    )
    parser.add_argument("--data-root", help="What the paths of a table are relative to.")
    options = vars(parser.parse_args(argv))
    from rich.console import Console

    from bgl.embedding import embed as run
    from bgl.images.loading import num_workers
    from bgl.images.reading import printable
    from bgl.pipeline import TerminalProgress
    from bgl.pipeline.run import end_now

    options["workers"] = num_workers(options["workers"])
    console = Console(quiet=int(os.environ.get("RANK", "0")) > 0)  # one process speaks for all
    terminal = TerminalProgress(console)
    before = 0  # images that were done

    def progress(done: int, total: int) -> None:
        nonlocal before
        if terminal.task is None:
            before = done
            console.print(f"{done:,} of {total:,} images are done", highlight=False)
            terminal.start("embedding", total - done)
        terminal.advance(done - before - terminal.done)

    handler = signal.signal(signal.SIGTERM, end_now)  # which releases what it has claimed
    try:
        with terminal.bars:
            shards = run(**options, progress=progress)
    except KeyboardInterrupt as stopped:
        print(f"{stopped or 'interrupted by SIGINT'}: the same command continues", file=sys.stderr)
        return int(getattr(stopped, "status", 128 + signal.SIGINT))
    finally:
        signal.signal(signal.SIGTERM, handler)
    about = shards.manifest
    line = f"{about.count:,} vectors of {about.dim} x {about.dtype} in {printable(shards.folder)}"
    console.print(line, highlight=False, markup=False, soft_wrap=True)
    if about.skipped:
        name, reason = next(shards.skipped())
        line = f"skipped: {about.skipped:,} images, listed in skipped.csv; {name}: {reason}"
        print(" ".join(printable(line).split()), file=sys.stderr)
    return 0


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


def _add_measured(parser: argparse.ArgumentParser) -> None:
    """Add options for the data that a model is measured on, and how."""
    parser.add_argument("--dataset", help="Name of a dataset; default: the run's, else emoji.")
    _add_dataset(parser)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument(
        "--device", default="auto", help='"cpu", "cuda", … (a GPU if there is one).'
    )
    parser.add_argument(
        "--workers", type=int, default=-1, help="Processes that load images (one per core)."
    )


def _add_dataset(parser: argparse.ArgumentParser) -> None:
    """Add options for where a dataset is and how it is read; None if not given."""
    parser.add_argument("--data-root", help="Folder of the dataset.")
    parser.add_argument("--table", help='CSV file of the dataset "table".')
    yes: dict[str, Any] = {"action": "store_const", "const": True}
    parser.add_argument("--skip-broken", **yes, help="Leave out broken images.")
    parser.add_argument("--allow-partial", **yes, help="Go on without some images.")


COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "train": train,
    "adapt": adapt,
    "check": check,
    "eval": evaluate,
    "refine": refine,
    "explore": explore,
    "search": search,
    "embed": embed,
    "datasets": datasets,
}

if __name__ == "__main__":
    sys.exit(main())
