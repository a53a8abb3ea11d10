"""The command ``bgl``: thin fronts of the library's functions.

bgl train …           train and measure; --help has every option
bgl eval RUN          measure a trained model on a dataset
bgl explore RUN       write the explorer page of a run
bgl search …          index images with a trained model, find the nearest
bgl datasets [NAME]   list the datasets, check or fetch one
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import bgl
from bgl._memory import out_of_memory

if TYPE_CHECKING:
    from bgl.datasets import Splits

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status: 0, 2 for a wrong argument or a missing package."""
    words = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(
        prog="bgl", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--version", action="version", version=f"bgl {bgl.__version__}")
    parser.add_argument("command", choices=COMMANDS, metavar="command", help=", ".join(COMMANDS))
    options = parser.parse_args(words[:1])
    try:
        with out_of_memory("use a smaller --batch-size"):
            return COMMANDS[options.command](words[1:])
    except (ImportError, ValueError, OSError, MemoryError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2


def train(argv: Sequence[str]) -> int:
    """``bgl train``: the same as ``python benchmarks/run.py``."""
    from bgl.pipeline import main as run

    return run(argv)


def evaluate(argv: Sequence[str]) -> int:
    """``bgl eval``: retrieval on the test classes of a dataset, a line per embedding."""
    parser = argparse.ArgumentParser(prog="bgl eval", description=evaluate.__doc__)
    parser.add_argument("run", help="Folder with model.json, or hf-hub:USER/NAME.")
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
    from bgl.training import evaluate_encoder

    encoder = load(options.run, options.device)
    splits = _load(options)
    print(f"{splits.name}, {splits.test.num_classes} test classes")
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
    """``bgl search``: the same as ``python -m bgl.search``."""
    from bgl.search.__main__ import main as run

    return run(argv, "bgl search")


def datasets(argv: Sequence[str]) -> int:
    """``bgl datasets``: the names; with one of them, what is in it."""
    parser = argparse.ArgumentParser(prog="bgl datasets", description=datasets.__doc__)
    _add_dataset(parser, positional=True)
    parser.add_argument("--download", action="store_true", help="Fetch it to --data-root first.")
    options = parser.parse_args(argv)
    from bgl.datasets import dataset_names, download

    if options.dataset is None:
        print("\n".join(dataset_names()))
        return 0
    if options.download:
        if options.data_root is None:
            raise ValueError("Expected --data-root DIR with --download, got none")
        download(options.dataset, options.data_root)
    splits = _load(options)
    for part, images in splits.parts().items():
        print(f"{part}: {images.num_classes:,} classes with {len(images):,} images")
    print(f"digest: {splits.digest}")
    return 0


def _add_dataset(parser: argparse.ArgumentParser, positional: bool = False) -> None:
    """The options that :func:`_load` reads."""
    if positional:
        parser.add_argument("dataset", nargs="?", help="Name of a dataset.")
    else:
        parser.add_argument("--dataset", default="emoji", help="Name of a dataset (emoji).")
    parser.add_argument("--data-root", help="Folder of the dataset.")
    parser.add_argument("--table", help='CSV file of the dataset "table".')
    parser.add_argument("--skip-broken", action="store_true", help="Leave out broken images.")
    parser.add_argument("--allow-partial", action="store_true", help="Go on without some images.")


def _load(options: argparse.Namespace) -> Splits:
    from bgl.datasets import load_dataset

    return load_dataset(
        options.dataset,
        options.data_root,
        skip_broken=options.skip_broken,
        allow_partial=options.allow_partial,
        table=options.table,
    )


COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "train": train,
    "eval": evaluate,
    "explore": explore,
    "search": search,
    "datasets": datasets,
}

if __name__ == "__main__":
    sys.exit(main())
