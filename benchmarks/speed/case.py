"""What a case is: one piece of work, done with bgl and by peers."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.util import find_spec

import torch
from torch import Tensor

Values = dict[str, Tensor]
Work = Callable[[], Values]
Product = tuple[int, int, int]  # [m, k] @ [k, n]


@dataclass(frozen=True)
class Scale:
    """The size of a case; data of training cases has the given dtype."""

    dtype: torch.dtype = torch.float32
    small: bool = False

    def __call__(self, paper: int, small: int) -> int:
        return small if self.small else paper


@dataclass(frozen=True)
class Peer:
    """Another way to the same result.

    Args:
        name: What the table calls it.
        run: Does the work once.
        against: Which of ours it is compared with.
        formula: Written as the paper has it, as nobody would keep it: in a table of its own.
        target: Least ratio of its time to ours.
        tolerance: Largest difference, relative to each array's largest magnitude. Up to 1e-6 it is
            looked for in float64, otherwise in the dtype that is timed.
        library: What must be installed.
        note: What the ratio does not say.
    """

    name: str
    run: Work
    against: str = "bgl"
    formula: bool = False
    target: float | None = None
    tolerance: float = 1e-6
    library: str | None = None
    note: str = ""

    @property
    def installed(self) -> bool:
        """Whether the peer's library is."""
        return self.library is None or find_spec(self.library) is not None


@dataclass(frozen=True)
class Sides:
    """All ways to one result at one size.

    Args:
        ours: By name; the first is "bgl".
        peers: What they are compared with.
        products: FLOP of the matrix products that nothing can leave out; 0 if there are none.
        shared: Work of every side, timed once and added to each.
        check: Two results to compare, given a peer's work, instead of ours and the peer's.
    """

    ours: dict[str, Work]
    peers: list[Peer]
    products: float = 0.0
    shared: Work | None = None
    check: Callable[[Work], tuple[Values, Values]] | None = None

    def works(self) -> dict[str, Work]:
        """Every way by its name."""
        return {**self.ours, **{peer.name: peer.run for peer in self.peers}}


@dataclass(frozen=True)
class Case:
    """One piece of work at one size."""

    name: str
    work: str
    build: Callable[[Scale], Sides]


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
