"""What a case is: parts that measure figures, each with its target."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

Work = Callable[[], object]


class OutOfTime(KeyboardInterrupt):
    """A case has taken too long.

    No error of a part, after which the next would begin, nor of a test for pytest.
    """


@dataclass(frozen=True)
class Scale:
    """Where to measure, and whether at the sizes of the targets or at tiny ones."""

    device: torch.device
    small: bool = False

    @property
    def cuda(self) -> bool:
        """Whether there is a GPU to wait for."""
        return self.device.type == "cuda"

    def __call__(self, full: int, small: int) -> int:
        return small if self.small else full


@dataclass(frozen=True)
class Target:
    """A figure by its name, and what it must reach."""

    name: str
    sense: str  # "≤" or "≥"
    limit: float
    unit: str = ""

    def met(self, value: float) -> bool:
        """Whether a value is good enough."""
        return value <= self.limit if self.sense == "≤" else value >= self.limit

    def __str__(self) -> str:
        return f"{self.sense} {self.limit:,g} {self.unit}".rstrip()


@dataclass(frozen=True)
class Part:
    """Measures figures one after the other, in the order of their targets."""

    measure: Callable[[Scale], Iterator[float]]
    targets: tuple[Target, ...]


@dataclass(frozen=True)
class Case:
    """Parts that belong together; an error in one of them leaves the others alone.

    Args:
        name: On the command line.
        title: In the table.
        seconds: What it may take; it is not begun with less time left, and ended after twice.
        parts: What is measured.
    """

    name: str
    title: str
    seconds: float
    parts: tuple[Part, ...]


def milliseconds(work: Work, scale: Scale, warmup: int = 5, calls: int = 20) -> float:
    """Time a call: the median of several, on the device's own clock."""
    if scale.small:
        warmup, calls = 1, 1
    for _ in range(warmup):
        work()
    return statistics.median(_timed(work, scale) for _ in range(calls))


def _timed(work: Work, scale: Scale) -> float:
    if not scale.cuda:
        started = time.perf_counter()
        work()
        return 1000 * (time.perf_counter() - started)
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    begin.record()
    work()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end)


def peak_gb(work: Work, scale: Scale) -> float:
    """GB that PyTorch holds at most during a call, inputs and model among them; 0 on a CPU."""
    if not scale.cuda:
        work()
        return 0.0
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    work()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() / 1e9


class Kernels(TorchDispatchMode):
    """Counts the operations that launch a kernel: all but views and questions about a tensor."""

    NO_KERNEL = frozenset(
        {
            *("aten::detach", "aten::_unsafe_view", "aten::lift_fresh", "aten::promote_types"),
            *("aten::empty", "aten::empty_like", "aten::empty_strided", "aten::new_empty"),
        }
    )

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        name = func._schema.name
        if name.startswith("aten::") and not func.is_view and name not in self.NO_KERNEL:
            self.count += 1
        return func(*args, **(kwargs or {}))


def launches(work: Work, scale: Scale) -> int:
    """Count the kernels of a call: those that a GPU ran, or what would launch one."""
    work()
    if not scale.cuda:
        with Kernels() as kernels:  # type: ignore[no-untyped-call]
            work()
        return kernels.count
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        work()
        torch.cuda.synchronize()
    return sum(
        event.device_type.name == "CUDA" and not event.name.startswith(("Memcpy", "Memset"))
        for event in profiler.events()
    )
