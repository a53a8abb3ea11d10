"""How time and memory grow: ``python -m benchmarks.speed --growth``

Each point is measured in a process of its own, peak memory beside the inputs and CPU seconds:
graph learning without labels and a convolution along the graph, forward and backward, on up to
65,536 samples; and a training step of a DyBGR block as one of samples N, neighbours k, iterations
T and channels C changes and the others stay at the paper's.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch

from benchmarks.pages import save
from bgl.layers import AdaptiveGraph, BatchGraphConv, DyBGRBlock

PAPER = {"N": 405, "k": 30, "T": 3, "C": 768}
VALUES = {
    "N": (128, 256, 405, 1024, 2048, 4096),
    "k": (5, 10, 30, 60, 120, 240),
    "T": (1, 2, 3, 5, 8),
    "C": (96, 192, 384, 768, 1536),
}
SAMPLES = (1024, 4096, 16_384, 65_536)
LEARNING = {"k": 30, "C": 64, "candidates": 60}

LONG = 5.0  # seconds: shorter work is done once more, to be timed warm


@dataclass(frozen=True)
class Point:
    """One measurement of a curve."""

    curve: str
    axis: str
    value: int
    make: Callable[[], Callable[[], object]]  # makes the inputs, and the work on them
    make_tiny: Callable[[], Callable[[], object]]


def learning(n: int, candidates: int | None) -> Callable[[], object]:
    """Learn a graph over n samples and convolve along it, forward and backward."""
    torch.manual_seed(0)
    x = torch.randn(n, LEARNING["C"], requires_grad=True)
    given = None
    if candidates is not None:  # distinct, and never the sample itself
        offset = 1 + torch.randperm(n - 1)[:candidates]
        given = (torch.arange(n)[:, None] + offset) % n
    learner, conv = AdaptiveGraph(LEARNING["k"]), BatchGraphConv()

    def work() -> None:
        x.grad = None
        conv(x, *learner(x, candidates=given)).square().sum().backward()

    return work


def block(n: int, k: int, t: int, channels: int) -> Callable[[], object]:
    """A training step of a DyBGR block, its feed-forward network left out."""
    torch.manual_seed(0)
    x = torch.randn(n, channels, requires_grad=True)
    y = torch.arange(n) // 9
    mixer = DyBGRBlock(channels, k, num_iterations=t).mixer

    def work() -> None:
        x.grad = None
        mixer(x, y=y).square().sum().backward()

    return work


def points(small: bool) -> Iterator[Point]:
    """All measurements."""
    samples = (128, 256) if small else SAMPLES
    for curve, candidates in (("searched", None), ("given", LEARNING["candidates"])):
        for n in samples:
            tiny = partial(learning, 64, candidates)
            yield Point(curve, "samples", n, partial(learning, n, candidates), tiny)
    for axis, values in VALUES.items():
        for value in values[:1] if small else values:
            sizes = {**PAPER, axis: value}
            n, k, t, c = sizes["N"], sizes["k"], sizes["T"], sizes["C"]
            work, tiny = partial(block, n, k, t, c), partial(block, 36, 5, t, 16)
            yield Point("block", axis, value, work, tiny)


def measure_point(point: Point, grown: Callable[[Callable[[], object]], float]) -> dict[str, Any]:
    """CPU seconds and MiB of a point; ``grown`` runs work and tells how far memory grew."""
    point.make_tiny()()  # loads code
    work = point.make()
    started = time.process_time()
    memory = grown(work)
    taken = time.process_time() - started
    if taken < LONG:
        started = time.process_time()
        work()
        taken = time.process_time() - started
    return {
        "curve": point.curve, "axis": point.axis, "value": point.value,
        "seconds": taken, "mib": memory,
    }  # fmt: skip


def plot_growth(rows: list[dict[str, Any]], path: Path) -> None:
    """Time above, memory below; against samples, N, k, T and C."""
    axes_names = ["samples", *VALUES]
    figure, axes = plt.subplots(2, len(axes_names), figsize=(14, 5), squeeze=False)
    titles = {"samples": "samples, graph learning", **{a: f"{a}, DyBGR block" for a in VALUES}}
    for column, axis in enumerate(axes_names):
        for quantity, ax in (("seconds", axes[0][column]), ("mib", axes[1][column])):
            for curve in dict.fromkeys(r["curve"] for r in rows if r["axis"] == axis):
                chosen = [r for r in rows if (r["curve"], r["axis"]) == (curve, axis)]
                label = {"searched": "all pairs", "given": "60 candidates"}.get(curve)
                values, heights = ([r[key] for r in chosen] for key in ("value", quantity))
                ax.plot(values, heights, "o-", markersize=4, label=label)
            ax.set_xscale("log", base=2)
            if axis == "samples":
                ax.set_yscale("log")
                ax.legend(fontsize=8)
            else:
                ax.set_ylim(bottom=0)
            ax.grid(alpha=0.3)
        axes[0][column].set_title(titles[axis], fontsize=10)
        axes[1][column].set_xlabel(axis)
    axes[0][0].set_ylabel("CPU seconds")
    axes[1][0].set_ylabel("peak memory, MiB")
    figure.tight_layout()
    save(figure, path)
