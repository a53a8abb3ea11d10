"""Train with several processes as one: each encodes a share of the batch, all see the whole."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

T = TypeVar("T")

BUCKET = 2**23  # numbers of gradients that are averaged together: 32 MB of float32


def num_processes() -> int:
    """Return how many processes train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def process_index() -> int:
    """Return the rank of this process among those that train together."""
    return dist.get_rank() if num_processes() > 1 else 0


def on_first_process(work: Callable[[], T]) -> T:
    """Run ``work`` in the first process alone; all processes get its result, or its error.

    So whatever is read from the run folder is the same for all, and processes on other machines
    need not see the folder at all. The result is serialised, by way of the CPU.

    Example:
        >>> on_first_process(lambda: 3)
        3
    """
    if num_processes() == 1:
        return work()
    outcome: list[Any] = [None, None]
    if process_index() == 0:
        try:
            outcome[0] = work()
        except (ValueError, OSError) as error:
            outcome[1] = error
    dist.broadcast_object_list(outcome, src=0)
    if outcome[1] is not None:
        raise outcome[1]
    return outcome[0]


@torch.no_grad()
def broadcast_module(module: nn.Module) -> None:
    """Give parameters and buffers on every process the values that they have on the first."""
    if num_processes() > 1:
        for tensor in (*module.parameters(), *module.buffers()):
            value = tensor.contiguous()
            dist.broadcast(value, src=0)
            tensor.copy_(value)


def shares(total: int, processes: int) -> list[range]:
    """Divide ``total`` items among processes, in order.

    Example:
        >>> shares(5, 2)
        [range(0, 2), range(2, 5)]
    """
    bounds = [total * i // processes for i in range(processes + 1)]
    return [range(*pair) for pair in itertools.pairwise(bounds)]


def gather_rows(x: Tensor, sizes: Sequence[int]) -> Tensor:
    """Gather the rows of all processes in their order, on every process, with a gradient.

    Every process must compute the same loss of the whole. The gradient of a row is the sum over
    the losses of all processes, which is its own one times their number. So where gradients of
    parameters are then averaged by :func:`average_gradients`, they are those of one process that
    has all rows.

    Args:
        x: Rows of this process [sizes[rank], ...].
        sizes: Rows of each process.

    Returns:
        [sum(sizes), ...]; ``x`` itself if there is one process only.

    Example:
        >>> gather_rows(torch.ones(2, 3), [2]).shape
        torch.Size([2, 3])
    """
    if num_processes() == 1:
        return x
    return _GatherRows.apply(x, tuple(sizes))


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, sizes: tuple[int, ...]) -> Tensor:
        ctx.sizes = sizes
        most = max(sizes)  # processes exchange tensors of one size
        padded = x.new_zeros(most, *x.shape[1:])
        padded[: len(x)] = x
        parts = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(parts, padded)
        return torch.cat([part[:n] for part, n in zip(parts, sizes, strict=True)])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        # all processes hold the same gradient: there is nothing to be exchanged
        return grads[0].split(ctx.sizes)[dist.get_rank()] * len(ctx.sizes), None


def average_gradients(parameters: Iterable[Tensor]) -> None:
    """Replace every gradient by its mean over all processes, some at a time."""
    if num_processes() == 1:
        return
    bucket: list[Tensor] = []
    for grad in [p.grad for p in parameters if p.grad is not None]:
        if bucket and sum(map(torch.numel, bucket)) + grad.numel() > BUCKET:
            _average(bucket)
            bucket = []
        bucket.append(grad)
    if bucket:
        _average(bucket)


def _average(grads: list[Tensor]) -> None:
    flat = torch.cat([grad.reshape(-1) for grad in grads])
    dist.all_reduce(flat)
    flat /= num_processes()
    for grad, mean in zip(grads, flat.split([grad.numel() for grad in grads]), strict=True):
        grad.copy_(mean.view(grad.shape))


@contextmanager
def fork_rng(seed: int, device: torch.device) -> Iterator[None]:
    """Draw random numbers from ``seed`` inside; the global generators are left as they were.

    What is drawn for a share of the batch, such as an encoder's dropout, must differ between
    processes; what is drawn for the whole batch must not.
    """
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
