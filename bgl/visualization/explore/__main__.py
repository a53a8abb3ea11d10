"""``python -m bgl.visualization.explore RUN``: the explorer page of a run."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from bgl.visualization import explore_run


def main(
    argv: Sequence[str] | None = None, prog: str = "python -m bgl.visualization.explore"
) -> int:
    """Write the page and print its path; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog=prog, description="Write one HTML page to look at a run of bgl train in a browser."
    )
    parser.add_argument("run", type=Path, help="Folder of the run.")
    parser.add_argument("--page", type=Path, help="HTML file to write (explorer.html in the run).")
    options = parser.parse_args(argv)
    try:
        print(f"look at it: {explore_run(options.run, options.page)}")
    except (OSError, ValueError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
