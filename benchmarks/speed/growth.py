"""How time and memory grow.

Each point is measured in a process of its own, CPU seconds and peak memory beyond its inputs:
graph learning without labels and a convolution along the graph, forward and backward, on up to
65,536 samples; and a training step of DyBGR as one of samples N, neighbours k, iterations
T and channels C changes and the others stay at the paper's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import matplotlib.pyplot as plt
import torch

from benchmarks.pages import save
from benchmarks.speed.measure import grown, in_child, seconds, seconds_of
from bgl.layers import AdaptiveGraph, BatchGraphConv, DyBGR

Work = Callable[[], object]

PAPER = {"N": 405, "k": 30, "T": 3, "C": 768}
VALUES = {
    "N": (128, 256, 405, 1024, 2048, 4096),
    "k": (5, 10, 30, 60, 120, 240),
    "T": (1, 2, 3, 5, 8),
    "C": (96, 192, 384, 768, 1536),
}
SAMPLES = {None: (1024, 4096, 16_384), 60: (1024, 4096, 16_384, 65_536)}  # by candidates
LEARNING = {"k": 30, "C": 64}
CURVES = {None: "all pairs", 60: "60 given candidates"}
GROWTH_HEADER = [
    "neighbours chosen from", "samples", "CPU", "MiB", "bytes per sample and neighbour",
]  # fmt: skip


@dataclass(frozen=True)
class Point:
    """CPU seconds and MiB at one size."""

    curve: str
    axis: str  # "samples", or one of N, k, T and C
    value: int
    seconds: float
    mib: float

    def cells(self) -> list[str]:
        """Write a line of the table: graph learning on ever more samples."""
        per_edge = 2**20 * self.mib / (LEARNING["k"] * self.value)
        time, memory = seconds(self.seconds), f"{self.mib:.0f}"
        return [self.curve, f"{self.value:,}", time, memory, f"{per_edge:.0f}"]


def learning(n: int, candidates: int | None) -> Work:
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


def block(n: int, k: int, t: int, channels: int) -> Work:
    """A training step of DyBGR."""
    torch.manual_seed(0)
    x = torch.randn(n, channels, requires_grad=True)
    y = torch.arange(n) // 9
    mixer = DyBGR(k, num_iterations=t)

    def work() -> None:
        x.grad = None
        mixer(x, y=y).square().sum().backward()

    return work


def measure_growth(small: bool) -> list[Point]:
    """Measure every point, each in a process of its own."""
    found = []
    for candidates, samples in SAMPLES.items():
        for n in (128, 256) if small else samples:
            works = partial(learning, n, candidates), partial(learning, 64, candidates)
            costs = in_child(partial(costs_of, *works))
            found.append(Point(CURVES[candidates], "samples", n, *costs))
    for axis, values in VALUES.items():
        for value in values[:1] if small else values:
            sizes = {**PAPER, axis: value}
            works = partial(block, *sizes.values()), partial(block, 36, 5, sizes["T"], 16)
            found.append(Point("", axis, value, *in_child(partial(costs_of, *works))))
    return found


def costs_of(make: Callable[[], Work], make_tiny: Callable[[], Work]) -> tuple[float, float]:
    """CPU seconds and MiB of some work; the tiny one loads code."""
    make_tiny()()
    work = make()
    mib = grown(work)
    return seconds_of(work, span=0.0), mib


def plot_growth(points: list[Point], path: Path) -> None:
    """Time above, memory below; against samples, N, k, T and C."""
    axes_names = ["samples", *VALUES]
    figure, axes = plt.subplots(2, len(axes_names), figsize=(14, 5), squeeze=False)
    titles = {"samples": "samples, graph learning", **{a: f"{a}, DyBGR" for a in VALUES}}
    for column, axis in enumerate(axes_names):
        for quantity, ax in (("seconds", axes[0][column]), ("mib", axes[1][column])):
            for curve in dict.fromkeys(p.curve for p in points if p.axis == axis):
                chosen = [p for p in points if (p.curve, p.axis) == (curve, axis)]
                heights = [getattr(p, quantity) for p in chosen]
                ax.plot([p.value for p in chosen], heights, "o-", markersize=4, label=curve)
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
