"""What a case of ``speed.py`` is: one piece of work, done with bgl and by a peer."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

Values = dict[str, Tensor]
Work = Callable[[], Values]
Product = tuple[int, int, int]  # [m, k] @ [k, n]

SHORTEST = 0.1  # seconds: shorter work is repeated within a measurement


@dataclass(frozen=True)
class Scale:
    """The size of a case; data of training cases has the given dtype."""

    dtype: torch.dtype = torch.float32
    small: bool = False
    full: bool = False

    def __call__(self, paper: int, small: int) -> int:
        return small if self.small else paper

    @property
    def images(self) -> int:
        """Images in a retrieval set: SOP's test set, or a part of it."""
        return self(60_000 if self.full else 20_000, 100)


@dataclass(frozen=True)
class Comparison:
    """The two sides of a case at one size."""

    ours: Work
    peer: Work
    shared: Callable[[], object] | None = None  # work of both sides, timed once, added to both
    products: float = 0.0  # FLOP of the matrix products that nothing can avoid
    check: Callable[[], tuple[Values, Values]] | None = None  # instead of comparing the sides


@dataclass(frozen=True)
class Case:
    """One row of the table."""

    name: str
    work: str
    against: str
    build: Callable[[Scale], Comparison]
    time: float | None = None  # least ratio of CPU seconds
    memory: float | None = None  # least ratio of peak memory
    most_memory: float | None = None  # of ours, in MiB
    memory_measured: bool = True
    library: str | None = None  # of the peer, where it need not be installed
    dtype: torch.dtype = torch.float64  # of the check
    tolerance: float = 1e-6  # of the check, relative to each array's largest magnitude

    @property
    def target(self) -> str:
        parts = []
        if self.time is not None:
            parts.append(f"≥ {self.time:.3g}×")
        if self.memory is not None:
            parts.append(f"memory ≤ 1/{self.memory:.3g}")
        if self.most_memory is not None:
            parts.append(f"≤ {self.most_memory:.0f} MiB")
        return ", ".join(parts) or "–"


def train_step(
    function: Callable[[Tensor], Tensor], x: Tensor, parameters: Iterable[Tensor] = ()
) -> Values:
    """Output of a function of ``x``, and the gradients of a weighted sum of it."""
    x = x.detach().requires_grad_()
    out = function(x)
    weight = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)
    if out.dim() == 0:
        weight = torch.ones_like(out)
    gradients = torch.autograd.grad((out * weight).sum(), [x, *parameters])
    return {"out": out.detach(), **{f"gradient {i}": g for i, g in enumerate(gradients)}}


def flop(products: Iterable[Product], train: bool = True) -> float:
    """Floating-point operations of matrix products; backward takes two more of each."""
    return (3 if train else 1) * sum(2.0 * m * k * n for m, k, n in products)


def class_data(scale: Scale, classes: int, per_class: int, channels: int) -> tuple[Tensor, Tensor]:
    """Clustered points, sorted by class."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(classes).repeat_interleave(per_class)
    center = torch.randn(classes, channels, generator=generator, dtype=torch.float64)
    noise = torch.randn(len(y), channels, generator=generator, dtype=torch.float64)
    return (center[y] + 1.5 * noise).to(scale.dtype), y
