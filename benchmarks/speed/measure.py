"""Seconds of all sides of a case in turn, and the growth of a process's memory."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import math
import multiprocessing
import os
import platform
import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch.utils.benchmark import Timer

from benchmarks.speed.case import Case, Peer, Scale, Sides, flop
from bgl._memory import peak_memory_mb

SPAN = 0.5  # seconds that short work is repeated for, in each round
BUDGET = 20.0  # seconds after which a case has no further round
LIBRARIES = [
    "torch", "torch-geometric", "numpy", "faiss-cpu", "pytorch-metric-learning",
    "open-metric-learning", "torchmetrics",
]  # fmt: skip
HEADER = [
    "work", "against", "ratio", "bgl", "peer", "all threads", "MiB bgl", "MiB peer", "target",
    "at most", "remarks",
]  # fmt: skip


@dataclass(frozen=True)
class Row:
    """A line of the tables: ours against one peer."""

    work: str
    peer: Peer
    ours: float  # CPU seconds on one thread
    theirs: float
    threads: float | None  # ratio of wall-clock seconds with all threads
    memory: tuple[float | None, float | None]  # MiB, ours and the peer's
    bound: float | None  # the ratio if ours were nothing but matrix products
    difference: float

    def cells(self) -> list[str]:
        """Write the line in words."""
        ratio, target, remarks = self.theirs / self.ours, self.peer.target, [self.peer.note]
        if target is not None and ratio < target:
            remarks.append("**below the target**")
        if self.bound is not None and self.bound < 1:
            remarks.append("bound below 1: products of these shapes outrun the one it assumes")
        remarks.append(f"results agree to {self.difference:.0e}")
        return [
            self.work,
            self.peer.name,
            f"{ratio:.2f}×",
            seconds(self.ours),
            seconds(self.theirs),
            "–" if self.threads is None else f"{self.threads:.2f}×",
            *("–" if value is None else f"{value:.0f}" for value in self.memory),
            "–" if target is None else f"≥ {target:.3g}×",
            "–" if self.bound is None else f"{self.bound:.1f}×",
            "; ".join(filter(None, remarks)),
        ]


def seconds(value: float) -> str:
    """Write a duration in words."""
    return f"{value:.2f} s" if value >= 1 else f"{1000 * value:.3g} ms"


def environment() -> str:
    """Name the machine and the versions of everything that is measured."""
    model = platform.processor() or platform.machine()
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        model = next(line for line in lines if line.startswith("model name")).split(": ")[1]
    versions = [f"python {platform.python_version()}"]
    for name in LIBRARIES:
        with contextlib.suppress(PackageNotFoundError):
            versions.append(f"{name} {version(name)}")
    return (
        f"{model} ({torch.backends.cpu.get_cpu_capability()}), {os.cpu_count()} cores, "
        f"load {os.getloadavg()[0]:.1f}; {', '.join(versions)}"
    )


def disagreement(sides: Sides, peer: Peer) -> float:
    """Find the largest difference of two results, relative to each array's magnitude."""
    run = sides.works()[peer.name]
    ours, expected = sides.check(run) if sides.check else (sides.ours[peer.against](), run())
    worst = 0.0
    for name, theirs in expected.items():
        found, theirs = ours[name].double(), theirs.double()
        difference = float((found - theirs).abs().max() / theirs.abs().max().clamp(min=1e-6))
        worst = max(worst, difference if math.isfinite(difference) else math.inf)
    return worst


def seconds_of(work: Callable[[], object], span: float, threads: int = 1) -> float:
    """Time a call: median seconds, of the CPU on one thread and of the clock on several."""
    clock = time.process_time if threads == 1 else time.perf_counter
    timer = Timer("work()", globals={"work": work}, num_threads=threads, timer=clock)
    return timer.blocked_autorange(min_run_time=span).median


def use_threads(count: int) -> None:
    """Set the threads of every library."""
    torch.set_num_threads(count)
    with contextlib.suppress(ImportError):
        import faiss

        faiss.omp_set_num_threads(count)


def measure(
    sides: Sides, names: list[str], repeats: int, span: float
) -> tuple[dict[str, float], float]:
    """Time each side on one thread (CPU); also the FLOP per second of a matrix product.

    The sides take turns, so that a busy moment of the machine meets all of them.
    """
    works: dict[str, Callable[[], object]] = {name: sides.works()[name] for name in names}
    works |= {"products": PRODUCT} | ({"shared": sides.shared} if sides.shared else {})
    found: dict[str, list[float]] = {name: [] for name in works}
    started = time.process_time()
    for _ in range(repeats):
        for name, work in works.items():
            found[name].append(seconds_of(work, span))
        if time.process_time() - started > BUDGET:
            break
    medians = {name: statistics.median(values) for name, values in found.items()}
    rate = PRODUCT_FLOP / medians.pop("products")
    shared = medians.pop("shared", 0.0)
    return {name: value + shared for name, value in medians.items()}, rate


def rows_of(
    case: Case, scale: Scale, repeats: int, memory: dict[str, float | None]
) -> tuple[list[Row], list[str], list[str]]:
    """Measure ours against every peer; also list peers not installed, and those that disagree."""
    sides, exact = case.build(scale), case.build(Scale(torch.float64, scale.small))
    missing, wrong, differences = [], [], {}
    for peer in sides.peers:
        if not peer.installed:
            missing.append(f"{case.name}: {peer.library} is not installed")
            continue
        found = disagreement(exact if peer.tolerance <= 1e-6 else sides, peer)
        if found <= peer.tolerance:
            differences[peer] = found
        else:
            worst = f"results differ by {found:.1e} > {peer.tolerance:.0e}"
            wrong.append(f"{case.name}, {peer.name}: {worst}")
    span = 0.0 if scale.small else SPAN
    names = list(dict.fromkeys(name for peer in differences for name in (peer.against, peer.name)))
    cpu, rate = measure(sides, names, repeats, span)
    wall: dict[str, float] = {}
    if (threads := os.cpu_count() or 1) > 1 and sides.shared is None:
        use_threads(threads)
        slow = {peer.name for peer in differences if peer.formula}
        works = {name: sides.works()[name] for name in names if name not in slow}
        wall = {name: seconds_of(work, span, threads) for name, work in works.items()}
        use_threads(1)
    rows = [
        Row(
            case.work,
            peer,
            cpu[peer.against],
            cpu[peer.name],
            wall[peer.name] / wall[peer.against] if peer.name in wall else None,
            (memory.get(peer.against), memory.get(peer.name)),
            cpu[peer.name] * rate / sides.products if sides.products else None,
            difference,
        )
        for peer, difference in differences.items()
    ]
    return rows, missing, wrong


_A, _B = torch.rand(512, 768), torch.rand(768, 3072)
PRODUCT = partial(torch.mm, _A, _B)
PRODUCT_FLOP = flop([(512, 768, 3072)], train=False)


def in_child(work: Callable[[], Any]) -> Any:
    """Call a function in a forked process; None if that dies."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)

    def tell(sender: Connection) -> None:
        warnings.simplefilter("ignore")
        sender.send(work())

    process = context.Process(target=tell, args=(sender,))
    process.start()
    sender.close()
    try:
        return receiver.recv()
    except EOFError:
        return None
    finally:
        process.join()


def peak_memory(case: Case, scale: Scale) -> dict[str, float | None]:
    """Measure by how many MiB a process grows in the work of each side, after a tiny one of it.

    Not of compiled sides: generating their code is not the work.
    """

    def grow(name: str) -> float:
        case.build(Scale(scale.dtype, small=True)).works()[name]()
        return grown(case.build(scale).works()[name])

    sides = case.build(Scale(scale.dtype, small=True))
    names = [*sides.ours, *(peer.name for peer in sides.peers if peer.installed)]
    return {name: in_child(partial(grow, name)) for name in names if "compiled" not in name}


def grown(work: Callable[[], object]) -> float:
    """Measure by how many MiB this process grows during some work."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # give back what the inputs took to make
        ctypes.CDLL(None).malloc_trim(0)
    with contextlib.suppress(OSError):  # lower the peak to what is resident now
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    before = peak_memory_mb()
    kept = work()
    grown = peak_memory_mb() - before
    del kept
    return grown
