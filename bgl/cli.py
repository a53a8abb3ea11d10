"""The command ``bgl``: thin fronts of the library's functions.

bgl train …           train and measure; --help has every option
bgl eval RUN          measure a trained model on a dataset
bgl explore RUN       write the explorer page of a run
bgl search …          index images with a trained model, find the nearest
bgl datasets [NAME]   list the datasets, check or fetch one

--plugin MODULE       with any command: import your own blocks, losses, datasets … first
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TextIO

import bgl
from bgl._memory import out_of_memory
from bgl._plugins import import_plugins

__all__ = ["main"]

DATA = ("dataset", "data_root", "table", "skip_broken", "allow_partial")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status: 0, 2 for a wrong argument or a missing package."""
    words = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(
        prog="bgl", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--version", action="version", version=f"bgl {bgl.__version__}")
    parser.add_argument("command", choices=COMMANDS, metavar="command", help=", ".join(COMMANDS))
    try:
        words, plugins = import_plugins(words)
        options = parser.parse_args(words[:1])
        if options.command == "train":  # which repeats them in what it says
            words += [word for name in plugins for word in ("--plugin", name)]
        with warnings.catch_warnings(), out_of_memory("use a smaller --batch-size"):
            warnings.showwarning = _show_warning
            return COMMANDS[options.command](words[1:])
    except (ImportError, ValueError, OSError, MemoryError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Print a remark to the user as one line, and other warnings as Python does."""
    text = " ".join(f"note: {message}".split())
    if category is not UserWarning:
        text = warnings.formatwarning(message, category, filename, lineno, line)
    print(text, file=sys.stderr if file is None else file)


def train(argv: Sequence[str]) -> int:
    """Train and measure, as ``python benchmarks/run.py`` does."""
    from bgl.pipeline import main as run

    return run(argv)


def evaluate(argv: Sequence[str]) -> int:
    """Measure retrieval on the test classes of a dataset, a line per embedding.

    Without --dataset: on the data that the model was trained on, as its config.yaml says.
    """
    parser = argparse.ArgumentParser(prog="bgl eval", description=evaluate.__doc__)
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
    own = encoder.config.embedding
    print(f"{splits.name}, {splits.test.num_classes} test classes; the model's embedding: {own}")
    metrics = evaluate_encoder(encoder, splits, options.batch_size, options.workers)
    for embedding, values in metrics.items():
        cells = [f"{k} {v:.4f}" if isinstance(v, float) else f"{k} {v}" for k, v in values.items()]
        print(f"{embedding}: {', '.join(cells)}")
    return 0


def explore(argv: Sequence[str]) -> int:
    """Write one HTML page to look at a run of bgl train in a browser."""
    parser = argparse.ArgumentParser(prog="bgl explore", description=explore.__doc__)
    parser.add_argument("run", help="Folder of the run.")
    parser.add_argument("--page", help="HTML file to write (explorer.html in the run).")
    options = parser.parse_args(argv)
    from bgl.pipeline import explore_run

    print(f"look at it: {explore_run(options.run, options.page)}")
    return 0


def search(argv: Sequence[str]) -> int:
    """Search images, as ``python -m bgl.search`` does."""
    from bgl.search.__main__ import main as run

    return run(argv, "bgl search")


def datasets(argv: Sequence[str]) -> int:
    """List the names of the datasets; with one of them, what is in it."""
    parser = argparse.ArgumentParser(prog="bgl datasets", description=datasets.__doc__)
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
    for part, images in splits.parts().items():
        print(f"{part}: {images.num_classes:,} classes with {len(images):,} images")
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
    "eval": evaluate,
    "explore": explore,
    "search": search,
    "datasets": datasets,
}

if __name__ == "__main__":
    sys.exit(main())
