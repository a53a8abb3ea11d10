"""How ``speed.py`` measures: two sides in turn, and the growth of a process's memory."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import math
import multiprocessing
import resource
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from benchmarks.speed.case import SHORTEST, Case, Comparison, Scale, flop


def seconds(value: float) -> str:
    """A duration in words."""
    return f"{value:.2f} s" if value >= 1 else f"{1000 * value:.3g} ms"


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
    memory: tuple[float | None, float | None]  # MiB, ours and the peer's
    detail: str
    work: str

    @property
    def met(self) -> bool | None:
        case = self.case
        ours, peer = (math.nan if value is None else value for value in self.memory)
        results = []
        if case.time is not None:
            results.append(self.cpu.ratio >= case.time)
        if case.memory is not None:
            results.append(peer >= case.memory * ours)
        if case.most_memory is not None:
            results.append(ours <= case.most_memory)
        return all(results) if results else None

    def stored(self) -> dict[str, Any]:
        """Everything measured, and what it is held against."""
        case = self.case
        return {
            "name": case.name, "work": self.work, "against": case.against,
            "cpu": asdict(self.cpu), "wall": asdict(self.wall), "mib": self.memory,
            "target": case.target, "met": self.met, "notes": self.detail,
        }  # fmt: skip


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
    calls, first = [], []
    for work in works:
        warming = timed(work, 1)
        if warming[0] < SHORTEST:
            warming = timed(work, 1)
        count = math.ceil(min(1000, max(1, SHORTEST / max(1e-9, warming[0]))))
        calls.append(count)
        # a long call to warm up is a repetition like the others
        first.append(warming if count == 1 else timed(work, count))
    rounds, rates = [first], []
    gc.collect()
    gc.disable()
    for repeat in range(1, repeats):
        order = range(len(works))
        times = {i: timed(works[i], calls[i]) for i in (reversed(order) if repeat % 2 else order)}
        rounds.append([times[i] for i in order])
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
    alone = comparison.products / statistics.median(rates or [product_rate()])
    limit = statistics.median(sides[1] for sides in rounds) / alone
    return f"matrix products alone {seconds(alone)}: at most {limit:.1f}×"


def product_rate() -> float:
    """FLOP per CPU second of a large float32 matrix product, here and now."""
    a, b = torch.rand(512, 768), torch.rand(768, 3072)
    work = partial(torch.mm, a, b)
    work()
    return flop([(512, 768, 3072)], train=False) / timed(work, 10)[0]


def in_children(*works: Callable[[], Any]) -> list[Any]:
    """What functions return in forked processes, side by side; None if one did not live to tell."""
    context = multiprocessing.get_context("fork")

    def tell(sender: Connection, work: Callable[[], Any]) -> None:
        sender.send(work())

    started = []
    for work in works:
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=tell, args=(sender, work))
        process.start()
        sender.close()
        started.append((process, receiver))
    found = []
    for process, receiver in started:
        try:
            found.append(receiver.recv())
        except EOFError:
            found.append(None)
        process.join()
    return found


def peak_memory(case: Case, scale: Scale, side: str) -> float:
    """MiB by which this process grows during the work of one side, after a tiny one."""
    warnings.simplefilter("ignore")
    getattr(case.build(Scale(scale.dtype, small=True)), side)()
    return grown(getattr(case.build(scale), side))


def grown(work: Callable[[], object]) -> float:
    """MiB by which this process grows during some work."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # give back what the inputs took to make
        ctypes.CDLL(None).malloc_trim(0)
    with contextlib.suppress(OSError):  # lower the peak to what is resident now
        Path("/proc/self/clear_refs").write_text("5")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    kept = work()
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    del kept
    return (after - before) / (2**20 if sys.platform == "darwin" else 2**10)
