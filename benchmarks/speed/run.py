"""Ours against careful peers: ``python -m benchmarks.speed [--only CASE ...] [--page FILE]``

Each case does one piece of work with bgl, as a careful author would write it, and with the library
one would take instead; the authors' formulas as they stand are in a table of their own. The results
are compared first, in float64 where the peer allows it. Then all sides are timed in turn in one
process, in float32, training steps forward and backward. A ratio is the peer's CPU seconds over
ours on one thread, which hold on a busy machine too; a second one is of wall-clock seconds with all
threads.

Peak memory is how far a process grows while it does the work once, beyond its inputs: in a child
forked before anything has run here, after a tiny run of the same work, whichever library allocates.

With ``--page`` the parts of a training step (``step.py``) and the growth with N, k, T and C
(``growth.py``) are measured as well, and the page's tables and plot are made anew.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from pathlib import Path

from benchmarks.pages import fill
from benchmarks.speed.case import Scale
from benchmarks.speed.cases import CASES
from benchmarks.speed.growth import GROWTH_HEADER, measure_growth, plot_growth
from benchmarks.speed.measure import HEADER, Row, environment, peak_memory, rows_of, use_threads
from benchmarks.speed.step import STEP_HEADER, STEPS, measure_step
from bgl.pipeline.table import markdown_table


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.speed",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = [case.name for case in CASES]
    parser.add_argument("--only", nargs="+", metavar="CASE", choices=names, help=", ".join(names))
    parser.add_argument("--repeats", type=int, default=3, help="rounds of all sides (3)")
    parser.add_argument("--small", action="store_true", help="tiny sizes: does everything run?")
    parser.add_argument("--page", type=Path, metavar="FILE", help="Markdown file to fill")
    options = parser.parse_args(argv)
    if options.repeats < 1:
        parser.error(f"--repeats must be at least 1, got {options.repeats}")
    return options


def main(argv: list[str] | None = None) -> int:
    """Measure, print the tables and fill the page; 1 if two results disagree."""
    options = parse(argv)
    cases = [case for case in CASES if options.only is None or case.name in options.only]
    started = time.perf_counter()
    warnings.simplefilter("ignore")
    use_threads(1)
    scale = Scale(small=options.small)
    print(environment())
    # Before anything has run here: forked processes inherit no caches and no threads.
    memory = {case.name: peak_memory(case, scale) for case in cases}
    growth = measure_growth(options.small) if options.page else []
    rows: list[Row] = []
    failed = 0
    for case in cases:
        found, missing, wrong = rows_of(case, scale, options.repeats, memory[case.name])
        rows += found
        failed += len(wrong)
        for line in [*(" | ".join(row.cells()) for row in found), *missing, *wrong]:
            print(line, flush=True)
    tables = {
        name: markdown_table(HEADER, [r.cells() for r in rows if r.peer.formula == formula], (0, 1))
        for name, formula in (("peers", False), ("formulas", True))
    }
    print(f"\n{tables['peers']}\n\n{tables['formulas']}")
    if options.page:
        steps = [measure_step(step, options.small).cells() for step in STEPS]
        tables["machine"] = environment()
        tables["step"] = markdown_table(STEP_HEADER, steps)
        samples = [point.cells() for point in growth if point.axis == "samples"]
        tables["growth"] = markdown_table(GROWTH_HEADER, samples)
        page = options.page.read_text(encoding="utf-8")
        text = fill(page, tables, markers="|".join(tables))
        options.page.write_text(text, encoding="utf-8")
        plot_growth(growth, options.page.with_name("performance_growth.png"))
    print(f"\n{len(rows)} rows, {time.perf_counter() - started:.0f} s", file=sys.stderr)
    return int(failed > 0)
