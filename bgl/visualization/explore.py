"""The explorer page of a run: ``python -m bgl.visualization.explore RUN``.

The function is :func:`bgl.visualization.explore`; this module is the command alone.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from bgl.visualization.explorer import explore


def main(argv: list[str] | None = None) -> int:
    """Write the page and print its path; returns the exit status."""
    parser = argparse.ArgumentParser(prog="bgl.visualization.explore", description=__doc__)
    parser.add_argument("run", type=Path, help="run folder of benchmarks/run.py")
    parser.add_argument("--output", type=Path, help="file to write (default: RUN/explorer.html)")
    options = parser.parse_args(argv)
    try:
        print(explore(options.run, path=options.output))
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
