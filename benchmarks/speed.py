"""Ours against straightforward peers: ``python benchmarks/speed.py [--only NAME ...] [--list]``

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

``--full`` takes SOP's 60,000 test images for retrieval (10,000 without) and more than an hour.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import gc
import math
import multiprocessing
import os
import platform
import resource
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from speed_cases import CASES, SHORTEST, Case, Comparison, Scale, flop


@dataclass(frozen=True)
class Seconds:
    """Medians over the repetitions, per call."""

    ours: float
    peer: float
    ratio: float


@dataclass(frozen=True)
class Row:
    """What was measured of a case."""

    case: Case
    cpu: Seconds
    wall: Seconds
    memory: tuple[float, float]  # MiB, ours and the peer's
    detail: str

    @property
    def met(self) -> bool | None:
        case, (ours, peer) = self.case, self.memory
        results = []
        if case.time is not None:
            results.append(self.cpu.ratio >= case.time)
        if case.memory is not None:
            results.append(peer >= case.memory * ours)
        if case.most_memory is not None:
            results.append(ours <= case.most_memory)
        return all(results) if results else None

    def cells(self) -> list[str]:
        ours, peer = self.memory
        return [
            self.case.name,
            self.case.work,
            self.case.against,
            f"{self.cpu.ratio:.2f}×",
            f"{self.wall.ratio:.2f}×",
            _seconds(self.cpu.ours),
            _seconds(self.cpu.peer),
            _seconds(self.wall.ours),
            _seconds(self.wall.peer),
            f"{ours:.0f}",
            f"{peer:.0f}",
            self.case.target,
            {True: "met", False: "NOT MET", None: "–"}[self.met],
            self.detail,
        ]


HEADER = [
    "case", "work", "against", "CPU ratio", "wall ratio", "CPU ours", "CPU peer", "wall ours",
    "wall peer", "MiB ours", "MiB peer", "target", "result", "notes",
]  # fmt: skip
WIDTHS = [19, 52, 37, 9, 10, 8, 8, 9, 9, 8, 8, 20, 7, 0]


def disagreement(case: Case, scale: Scale) -> float:
    """Largest difference between two results, relative to the largest magnitude of each array."""
    comparison = case.build(Scale(case.dtype, scale.small, scale.full))
    check = comparison.check or (lambda: (comparison.ours(), comparison.peer()))
    ours, peer = check()
    if ours.keys() != peer.keys():
        raise ValueError(f"{case.name}: results {sorted(ours)} and {sorted(peer)}")
    worst = 0.0
    for name, expected in peer.items():
        found, expected = ours[name].double(), expected.double()
        difference = float((found - expected).abs().max() / expected.abs().max().clamp(min=1e-6))
        worst = max(worst, difference if math.isfinite(difference) else math.inf)
    return worst


def timed(work: Callable[[], object], calls: int) -> tuple[float, float]:
    """CPU and wall-clock seconds of a call."""
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(calls):
        work()
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    return cpu / calls, wall / calls


def compare_times(comparison: Comparison, repeats: int) -> tuple[Seconds, Seconds, str]:
    """Both sides in turn, first one first, then the other: CPU and wall-clock seconds."""
    works: list[Callable[[], object]] = [comparison.ours, comparison.peer]
    if comparison.shared is not None:
        works.append(comparison.shared)
    calls = []
    for work in works:
        seconds, _ = timed(work, 1)
        if seconds < SHORTEST:  # warm now
            seconds, _ = timed(work, 1)
        calls.append(math.ceil(min(1000, max(1, SHORTEST / max(1e-9, seconds)))))
    gc.collect()
    gc.disable()
    rounds, rates = [], []
    for repeat in range(repeats):
        order = range(len(works))
        found = {i: timed(works[i], calls[i]) for i in (reversed(order) if repeat % 2 else order)}
        rounds.append([found[i] for i in order])
        if comparison.products > 0:
            rates.append(product_rate())
    gc.enable()
    cpu, wall = ([[side[clock] for side in sides] for sides in rounds] for clock in (0, 1))
    return _medians(cpu), _medians(wall), _detail(comparison, cpu, rates)


def _medians(rounds: list[list[float]]) -> Seconds:
    shared = statistics.median(sum(sides[2:]) for sides in rounds)
    ours = [sides[0] + shared for sides in rounds]
    peer = [sides[1] + shared for sides in rounds]
    ratios = [b / a for a, b in zip(ours, peer, strict=True)]
    return Seconds(statistics.median(ours), statistics.median(peer), statistics.median(ratios))


def _detail(comparison: Comparison, rounds: list[list[float]], rates: list[float]) -> str:
    if comparison.shared is not None:
        overhead = statistics.median(ours - peer for ours, peer, _ in rounds)
        return f"overhead {overhead / statistics.median(r[1] + r[2] for r in rounds):.1%}"
    if comparison.products == 0:
        return ""
    seconds = comparison.products / statistics.median(rates)
    limit = statistics.median(sides[1] for sides in rounds) / seconds
    return f"matrix products alone {_seconds(seconds)}: at most {limit:.1f}×"


def product_rate() -> float:
    """FLOP per CPU second of a large float32 matrix product, here and now."""
    a, b = torch.rand(512, 768), torch.rand(768, 3072)
    work = partial(torch.mm, a, b)
    work()
    return flop([(512, 768, 3072)], train=False) / timed(work, 10)[0]


def peak_memory(case: Case, scale: Scale, side: str) -> float:
    """MiB by which a child process grows during the work of one side."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_measure_peak, args=(case, scale, side, sender))
    process.start()
    sender.close()
    try:
        growth: float = receiver.recv()
    except EOFError:  # it did not live to tell
        growth = math.nan
    process.join()
    return growth


def _measure_peak(case: Case, scale: Scale, side: str, sender: Connection) -> None:
    warnings.simplefilter("ignore")
    getattr(case.build(Scale(scale.dtype, small=True)), side)()
    work = getattr(case.build(scale), side)
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # give back what the inputs took to make
        ctypes.CDLL(None).malloc_trim(0)
    with contextlib.suppress(OSError):  # lower the peak to what is resident now
        Path("/proc/self/clear_refs").write_text("5")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    kept = work()
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    del kept
    sender.send((after - before) / (2**20 if sys.platform == "darwin" else 2**10))


# ----------------------------------------------------------------------------------------- main


def environment() -> str:
    """The machine, threads and versions."""
    model = platform.processor() or platform.machine()
    with contextlib.suppress(OSError, IndexError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(line for line in lines if line.startswith("model name")).split(": ")[1]
    versions = [f"python {platform.python_version()}"]
    for name in ("torch", "torch-geometric", "numpy", "faiss-cpu", "pytorch-metric-learning"):
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


def _seconds(value: float) -> str:
    return f"{value:.2f} s" if value >= 1 else f"{1000 * value:.3g} ms"


def line(cells: Sequence[str], markdown: bool) -> str:
    if markdown:
        return "| " + " | ".join(cells) + " |"
    return "  ".join(cell.ljust(w) for cell, w in zip(cells, WIDTHS, strict=True)).rstrip()


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "speed.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [case.name for case in CASES]
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=names, help="these cases only")
    parser.add_argument("--list", action="store_true", help="list the cases")
    parser.add_argument("--repeats", type=int, default=7, help="alternating repetitions (7)")
    parser.add_argument("--markdown", action="store_true", help="print a markdown table")
    parser.add_argument("--small", action="store_true", help="tiny sizes: does everything run?")
    parser.add_argument("--full", action="store_true", help="retrieval among 60,000 images")
    options = parser.parse_args(argv)
    if options.repeats < 1:
        parser.error(f"--repeats must be at least 1, got {options.repeats}")
    return options


def main(argv: list[str] | None = None) -> int:
    """Run the cases and print the table; 1 if two results disagree."""
    options = parse(argv)
    cases = [case for case in CASES if options.only is None or case.name in options.only]
    if options.list:
        for case in cases:
            print(f"{case.name:20}{case.work}; against: {case.against}; target: {case.target}")
        return 0
    started = time.perf_counter()
    warnings.simplefilter("ignore")
    one_thread()
    scale = Scale(small=options.small, full=options.full)
    print(environment())
    sizes = "tiny sizes" if options.small else "SOP's 60,000" if options.full else "10,000"
    print(f"retrieval among {sizes}; medians of {options.repeats}; peak memory beside the inputs\n")

    # Before anything has run here: forked processes inherit no caches and no threads.
    memory = {}
    for case in cases:
        print(f"memory: {case.name}", file=sys.stderr, flush=True)
        memory[case.name] = (
            peak_memory(case, scale, "ours"),
            peak_memory(case, scale, "peer"),
        )
    print(line(HEADER, options.markdown))
    if options.markdown:
        print(line(["---"] * len(HEADER), True))
    rows, failed = [], []
    for case in cases:
        try:
            error = disagreement(case, scale)
            if not error <= case.tolerance:
                failed.append(f"{case.name}: results differ by {error:.1e} > {case.tolerance:.0e}")
                continue
            cpu, wall, detail = compare_times(case.build(scale), options.repeats)
        except ImportError as missing:
            failed.append(f"{case.name}: not measured, {missing}")
            continue
        detail = "; ".join(filter(None, [detail, f"results agree to {error:.0e}"]))
        rows.append(Row(case, cpu, wall, memory[case.name], detail))
        print(line(rows[-1].cells(), options.markdown), flush=True)
    missed = sum(row.met is False for row in rows)
    print(f"\n{len(rows)} cases, {missed} below target, {time.perf_counter() - started:.0f} s")
    for failure in failed:
        print(failure)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
