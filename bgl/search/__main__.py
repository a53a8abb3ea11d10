"""``python -m bgl.search build RUN IMAGES… --index FOLDER`` and ``… query INDEX IMAGE…``."""

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


def make_parser(prog: str) -> argparse.ArgumentParser:
    """Make the parser of the two commands."""
    parser = Parser(prog=prog, description="Find the images nearest to an image.")
    commands = parser.add_subparsers(dest="command", required=True)
    build = commands.add_parser("build", help="Embed images with a trained model and index them.")
    build.add_argument("run", help="Folder with model.json, or hf-hub:USER/NAME.")
    build.add_argument("images", nargs="+", help="Image files, and folders to search for them.")
    build.add_argument("--index", required=True, type=Path, help="Folder to write.")
    build.add_argument(
        "--output",
        choices=("default", "backbone", "head", "readout"),
        default="default",
        help="Which embedding to compare (the one that the model was chosen by).",
    )
    build.add_argument("--batch-size", type=int, default=64)
    build.add_argument(
        "--workers", type=int, default=-1, help="Processes that load images (one per core)."
    )
    query = commands.add_parser("query", help="Find the images nearest to others.")
    query.add_argument("index", type=Path, help="Folder that build wrote.")
    query.add_argument("images", nargs="+", help="Image files, and folders to search for them.")
    query.add_argument("-k", type=int, default=10, help="Results for each image (10).")
    query.add_argument("--page", type=Path, help="HTML file to write (search.html in the index).")
    query.add_argument("--run", help="Where the model is now, if it was moved.")
    for command in (build, query):
        command.add_argument(
            "--device", default="auto", help='"cpu", "cuda", … (a GPU if there is one).'
        )
    return parser


def main(argv: Sequence[str] | None = None, prog: str = "python -m bgl.search") -> int:
    """Build an index or query one; return the exit status."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # names that the terminal's encoding lacks
            stream.reconfigure(errors="backslashreplace")
    try:
        options = make_parser(prog).parse_args(argv)
        return _build(options) if options.command == "build" else _query(options)
    except (ValueError, OSError) as error:
        print(f"error: {as_on_the_command_line(str(error))}", file=sys.stderr)
        return 2


def _build(options: argparse.Namespace) -> int:
    from bgl.images.loading import num_workers
    from bgl.images.reading import printable
    from bgl.search import SearchIndex

    bar = sys.stderr.isatty()

    def progress(done: int, total: int) -> None:
        if bar or done == total:
            start, end = ("\r", "") if bar else ("", "\n")
            print(f"{start}{done} of {total} images", end=end, file=sys.stderr, flush=True)

    index = SearchIndex.build(
        options.run,
        options.images,
        options.output,
        options.batch_size,
        options.device,
        progress,
        num_workers(options.workers),
    )
    if bar:
        print(file=sys.stderr)
    index.save(options.index)
    _report(index.broken)
    print(f"{len(index)} images in {printable(options.index)}, compared by {index.measure}")
    return 0


def _query(options: argparse.Namespace) -> int:
    from bgl.images.reading import printable
    from bgl.search import SearchIndex, find_images, write_results

    find_images(options.images)  # before the model is loaded, which takes seconds
    index = SearchIndex.load(options.index, options.run, options.device)
    results, broken = index.query(options.images, options.k)
    _report(broken)
    for query, hits in results.items():
        print(f"{printable(query)} ({index.measure})")
        for rank, hit in enumerate(hits, start=1):
            print(f"{rank:4d}  {hit.score:8.4f}  {printable(hit.path)}")
    about = f"{len(index)} images in {options.index}; model {index.run}"
    page = write_results(
        results, options.page or options.index / "search.html", index.measure, about
    )
    print(f"look at it: {printable(page)}")
    return 0


def _report(broken: Sequence[BrokenImageError]) -> None:
    from bgl.images.reading import printable

    for error in broken:
        reason = printable(f"{error.path}: {error.reason}")
        print(f"skipped: {' '.join(reason.split())}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
