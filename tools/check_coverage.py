"""Tabulate coverage by part, and fail below the limits: ``python -m tools.check_coverage``

Reads what ``coverage run`` of the parts that everything else is built on has left.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import PurePath
from tempfile import TemporaryDirectory
from typing import Any

LINES, BRANCHES = 95.0, 90.0  # percent of each part, at least
PARTS = ("layers", "augment", "losses", "metrics", "samplers.py")


def table(files: dict[str, dict[str, Any]]) -> tuple[str, bool]:
    """Write what ``coverage json`` says of the files as a table; whether all parts suffice.

    Example:
        >>> counts = {"covered_lines": 19, "num_statements": 20}
        >>> counts |= {"covered_branches": 8, "num_branches": 10}
        >>> files = {f"bgl/{part}": {"summary": counts} for part in PARTS}
        >>> text, enough = table(files)
        >>> text.splitlines()[2], enough
        ('| layers | 95.0 % | 80.0 % |', False)
    """
    rows = ["| part | lines | branches |", "| :-- | --: | --: |"]
    enough = True
    for part in PARTS:
        found = [about["summary"] for name, about in files.items() if part in PurePath(name).parts]
        lines, branches = (
            100 * sum(s[f"covered_{of}"] for s in found) / sum(s[total] for s in found)
            for of, total in (("lines", "num_statements"), ("branches", "num_branches"))
        )
        enough &= lines >= LINES and branches >= BRANCHES
        rows.append(f"| {part} | {lines:.1f} % | {branches:.1f} % |")
    return "\n".join(rows), enough


def main() -> int:
    """Print the table; the exit status is 1 if a part is below a limit."""
    with TemporaryDirectory() as folder:
        path = f"{folder}/coverage.json"
        subprocess.run([sys.executable, "-m", "coverage", "json", "-q", "-o", path], check=True)
        with open(path, encoding="utf-8") as file:
            text, enough = table(json.load(file)["files"])
    print(text)
    if not enough:
        print(f"\nExpected at least {LINES} % of lines and {BRANCHES} % of branches of each part")
    return int(not enough)


if __name__ == "__main__":
    raise SystemExit(main())
