"""``python -m bgl.search build RUN IMAGES… --store STORE`` and ``… query IMAGE… --store STORE``."""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bgl._usage import Parser, as_on_the_command_line

if TYPE_CHECKING:
    from bgl.images import BrokenImageError
    from bgl.search import SearchIndex

IMAGES = "Image files, and folders to search for them."
ADDRESS = "Where the index is: a folder, milvus:FILE.db or milvus:http://HOST:PORT."


def make_parser(prog: str) -> argparse.ArgumentParser:
    """Make the parser of the commands."""
    parser = Parser(prog=prog, description="Find the images nearest to an image.")
    commands = parser.add_subparsers(dest="command", required=True)
    build = commands.add_parser("build", help="Embed images with a trained model and index them.")
    build.add_argument("run", help="Folder with model.json, emoji, or hf-hub:USER/NAME.")
    build.add_argument("images", nargs="+", help=f"{IMAGES} Or the folder that bgl embed wrote.")
    build.add_argument(
        "--output",
        choices=("default", "backbone", "head", "readout"),
        default="default",
        help="Which embedding to compare (the one that the model was chosen by).",
    )
    query = commands.add_parser("query", help="Find the images nearest to others.")
    query.add_argument("images", nargs="+", help=f"{IMAGES} Or paths in the index.")
    query.add_argument("-k", type=int, default=10, help="Results for each image (10).")
    query.add_argument("--label", help="Find only images with this label (their folder's name).")
    query.add_argument(
        "--check", action="store_true", help="Estimate whether refining the index would help."
    )
    query.add_argument("--page", type=Path, help="HTML file to write (search.html in the index).")
    add = commands.add_parser("add", help="Embed the images that the index lacks and add them.")
    update = commands.add_parser("update", help="Embed images again, or add them.")
    for command in (add, update):
        command.add_argument("images", nargs="+", help=IMAGES)
    remove = commands.add_parser("remove", help="Remove images from the index.")
    remove.add_argument("images", nargs="+", help="Their paths; the files need not exist.")
    for command in (build, add, update):
        command.add_argument("--batch-size", type=int, default=64)
        command.add_argument(
            "--workers", type=int, default=-1, help="Processes that load images (one per core)."
        )
    for command in (query, add, update, remove):
        command.add_argument("--run", help="Where the model is now, if it was moved.")
    for command in (build, query, add, update, remove):
        command.add_argument("--store", required=True, metavar="ADDRESS", help=ADDRESS)
        command.add_argument(
            "--device", default="auto", help='"cpu", "cuda", … (a GPU if there is one).'
        )
    return parser


def main(argv: Sequence[str] | None = None, prog: str = "python -m bgl.search") -> int:
    """Build, change or query an index; return the exit status."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # names that the terminal's encoding lacks
            stream.reconfigure(errors="backslashreplace")
    try:
        options = make_parser(prog).parse_args(argv)
        if options.command == "build":
            _build(options)
        else:
            _open(options)
        return 0
    except (ImportError, ValueError, OSError) as error:
        print(f"error: {as_on_the_command_line(str(error))}", file=sys.stderr)
        return 2


def _build(options: argparse.Namespace) -> None:
    from bgl.images.loading import num_workers
    from bgl.search import SearchIndex

    index = SearchIndex.build(
        options.run,
        options.images,
        options.store,
        options.output,
        options.batch_size,
        options.device,
        _progress,
        num_workers(options.workers),
    )
    _report(index.broken)
    _describe(index)


def _open(options: argparse.Namespace) -> None:
    from bgl.images.loading import num_workers
    from bgl.search import SearchIndex

    index = SearchIndex.load(options.store, options.run, options.device)
    if options.command == "query":
        _query(options, index)
        return
    if options.command == "remove":
        print(f"{index.remove(options.images)} images removed")
    else:
        change = index.add if options.command == "add" else index.update
        workers = num_workers(options.workers)
        count, broken = change(options.images, options.batch_size, _progress, workers)
        _report(broken)
        print(f"{count} images embedded")
    _describe(index)


def _query(options: argparse.Namespace, index: SearchIndex) -> None:
    from bgl.images.reading import printable
    from bgl.search import write_results
    from bgl.search.store import MILVUS

    results, broken = index.query(options.images, options.k, options.label)
    _report(broken)
    for query, hits in results.items():
        print(f"{printable(query)} ({index.measure})")
        for rank, hit in enumerate(hits, start=1):
            print(f"{rank:4d}  {hit.score:8.4f}  {printable(hit.path)}")
    about = f"{len(index)} images in {options.store}; model {index.store.about.run}"
    if options.check:
        expected = str(index.forecast())
        print(expected)
        about = f"{about}. {expected}"
    folder = Path() if options.store.startswith(MILVUS) else Path(options.store)
    page = write_results(results, options.page or folder / "search.html", index.measure, about)
    print(f"look at it: {printable(page)}")


def _progress(done: int, total: int) -> None:
    bar = sys.stderr.isatty()
    if bar or done == total:
        start, end = ("\r", "\n" if done == total else "") if bar else ("", "\n")
        print(f"{start}{done} of {total} images", end=end, file=sys.stderr, flush=True)


def _describe(index: SearchIndex) -> None:
    from bgl.images.reading import printable

    where = printable(index.address)
    print(f"{len(index)} images in {where}, compared by {index.measure}: {index.engine}")


def _report(broken: Sequence[BrokenImageError]) -> None:
    from bgl.images.reading import printable

    for error in broken:
        reason = printable(f"{error.path}: {error.reason}")
        print(f"skipped: {' '.join(reason.split())}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
