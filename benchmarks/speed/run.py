"""Ours against straightforward peers: ``python -m benchmarks.speed [--only NAME ...] [--list]``

Each case computes one result in two ways: with bgl, and plainly (``peers.py``) or with the library
one would take instead. First the two results are compared, in float64 where the peer allows it;
then they are timed in turn, in one process, on one thread, in float32, training steps forward and
backward. A ratio is the peer's CPU seconds over ours, the median of the repetitions; with one
thread these are the seconds of an idle machine, and they hold on a busy one too (wall-clock
seconds stand beside them).

Peak memory is how far the resident set of a process grows while it does the work once: in a child
process forked before anything else has run, after a warm-up at a tiny size (which loads code) and
after the inputs are made. It counts everything, whichever library allocates it, and is measured
from what is resident then (on Linux; elsewhere from the peak so far).

``--full`` takes SOP's 60,000 test images for retrieval (20,000 without) and more than an hour.
``--step`` measures the parts of a training step instead, and ``--growth`` how time and memory
grow. With ``--json FILE`` results are kept, for ``python -m benchmarks.speed.report``.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import sys
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from benchmarks.speed.case import Case, Scale
from benchmarks.speed.cases import CASES
from benchmarks.speed.growth import measure_point, points
from benchmarks.speed.measure import (
    Row,
    compare_times,
    disagreement,
    grown,
    in_children,
    peak_memory,
    seconds,
)
from benchmarks.speed.step import STEP_HEADER, STEPS, measure_step, step_cells
from bgl._io import write_text


def cells(row: dict[str, Any]) -> list[str]:
    """A line of the table from a stored row."""
    cpu, wall = row["cpu"], row["wall"]
    return [
        row["name"],
        row["work"],
        row["against"],
        f"{cpu['ratio']:.2f}×",
        f"{wall['ratio']:.2f}×",
        *(seconds(side[key]) for side in (cpu, wall) for key in ("ours", "peer")),
        *("–" if value is None else f"{value:.0f}" for value in row["mib"]),
        row["target"],
        {True: "met", False: "NOT MET", None: "–"}[row["met"]],
        row["notes"],
    ]


HEADER = [
    "case", "work", "against", "CPU ratio", "wall ratio", "CPU ours", "CPU peer", "wall ours",
    "wall peer", "MiB ours", "MiB peer", "target", "result", "notes",
]  # fmt: skip
WIDTHS = [19, 52, 37, 9, 10, 8, 8, 9, 9, 8, 8, 20, 7, 0]


def environment() -> str:
    """The machine, threads and versions."""
    model = platform.processor() or platform.machine()
    with contextlib.suppress(OSError, IndexError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(line for line in lines if line.startswith("model name")).split(": ")[1]
    versions = [f"python {platform.python_version()}"]
    for name in (
        "torch",
        "torch-geometric",
        "numpy",
        "faiss-cpu",
        "pytorch-metric-learning",
        "open-metric-learning",
    ):
        with contextlib.suppress(PackageNotFoundError):
            versions.append(f"{name} {version(name)}")
    busy = os.getloadavg()[0]
    return (
        f"{model} ({torch.backends.cpu.get_cpu_capability()}), {os.cpu_count()} cores, load "
        f"{busy:.1f}; {torch.get_num_threads()} thread, float32\n{', '.join(versions)}"
    )


def one_thread() -> None:
    """Every library on one thread."""
    torch.set_num_threads(1)
    with contextlib.suppress(ImportError):
        import faiss

        faiss.omp_set_num_threads(1)


def line(cells: Sequence[str], markdown: bool) -> str:
    if markdown:
        return "| " + " | ".join(cells) + " |"
    return "  ".join(cell.ljust(w) for cell, w in zip(cells, WIDTHS, strict=True)).rstrip()


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.speed",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = [case.name for case in CASES]
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=names, help="these cases only")
    parser.add_argument("--list", action="store_true", help="list the cases")
    parser.add_argument("--repeats", type=int, default=7, help="alternating repetitions (7)")
    parser.add_argument("--markdown", action="store_true", help="print a markdown table")
    parser.add_argument("--small", action="store_true", help="tiny sizes: does everything run?")
    parser.add_argument("--full", action="store_true", help="retrieval among 60,000 images")
    parser.add_argument("--step", action="store_true", help="the parts of a training step")
    parser.add_argument("--growth", action="store_true", help="growth with N, k, T and C")
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep the results in FILE")
    options = parser.parse_args(argv)
    if options.repeats < 1:
        parser.error(f"--repeats must be at least 1, got {options.repeats}")
    return options


def keep(path: Path | None, section: str, rows: list[dict[str, Any]]) -> None:
    """Put rows into a section of the stored results; those of the same name and work give way."""
    if path is None:
        return
    stored = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}

    def identity(row: dict[str, Any]) -> tuple[Any, ...]:
        return tuple(row.get(key) for key in ("name", "work", "curve", "axis", "value"))

    merged = {identity(row): row for row in stored.get(section, [])}
    merged |= {identity(row): {**row, "machine": environment()} for row in rows}
    stored[section] = list(merged.values())
    write_text(path, json.dumps(stored, indent=1, ensure_ascii=False) + "\n")


def print_table(header: list[str], rows: Iterable[list[str]], markdown: bool) -> None:
    """Lines as they come, under a header."""
    for number, row in enumerate(chain([header], rows)):
        print(line(row, markdown), flush=True)
        if markdown and number == 0:
            print(line(["---"] * len(header), True))


def measure_cases(
    cases: list[Case], scale: Scale, repeats: int, failed: list[str], skipped: list[str]
) -> Iterator[dict[str, Any]]:
    """The rows of the table; what disagrees or cannot run is told apart."""
    memory: dict[str, tuple[float | None, float | None]] = {}
    # Before anything has run here: forked processes inherit no caches and no threads.
    for case in cases:
        memory[case.name] = (None, None)
        if case.memory_measured and _available(case):
            print(f"memory: {case.name}", file=sys.stderr, flush=True)
            ours, peer = in_children(
                *(partial(peak_memory, case, scale, side) for side in ("ours", "peer"))
            )
            memory[case.name] = (ours, peer)
    for case in cases:
        if not _available(case):
            skipped.append(f"{case.name}: not measured, {case.library} is not installed")
            continue
        error = disagreement(case, scale)
        if not error <= case.tolerance:
            failed.append(f"{case.name}: results differ by {error:.1e} > {case.tolerance:.0e}")
            continue
        cpu, wall, detail = compare_times(case.build(scale), repeats)
        detail = "; ".join(filter(None, [detail, f"results agree to {error:.0e}"]))
        work = case.work.format(images=f"{scale.images:,}")
        yield Row(case, cpu, wall, memory[case.name], detail, work).stored()


def _available(case: Case) -> bool:
    return case.library is None or find_spec(case.library) is not None


def main(argv: list[str] | None = None) -> int:
    """Run the cases and print the table; 1 if two results disagree."""
    options = parse(argv)
    cases = [case for case in CASES if options.only is None or case.name in options.only]
    if options.list:
        for case in cases:
            print(f"{case.name:24}{case.work}; against: {case.against}; target: {case.target}")
        return 0
    started = time.perf_counter()
    warnings.simplefilter("ignore")
    one_thread()
    scale = Scale(small=options.small, full=options.full)
    print(environment())
    if options.step or options.growth:
        if options.step:
            steps = []
            for step in STEPS:
                steps.append(measure_step(step, 1 if options.small else 3, options.small))
                keep(options.json, "step", steps[-1:])
            print_table(STEP_HEADER, map(step_cells, steps), markdown=True)
        if options.growth:
            for point in points(options.small):
                (row,) = in_children(partial(measure_point, point, grown))
                keep(options.json, "growth", [row])
                print(f"{row['curve']} {row['axis']}={row['value']}: "
                      f"{seconds(row['seconds'])}, {row['mib']:.0f} MiB")  # fmt: skip
        return 0
    print(f"medians of {options.repeats}; peak memory beside the inputs\n")
    failed: list[str] = []
    skipped: list[str] = []
    rows: list[dict[str, Any]] = []

    def measured() -> Iterator[list[str]]:
        for row in measure_cases(cases, scale, options.repeats, failed, skipped):
            rows.append(row)
            keep(options.json, "cases", [row])
            yield cells(row)

    print_table(HEADER, measured(), options.markdown)
    missed = sum(row["met"] is False for row in rows)
    print(f"\n{len(rows)} cases, {missed} below target, {time.perf_counter() - started:.0f} s")
    for message in (*skipped, *failed):
        print(message)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
