"""Train with several processes as one: each encodes a share of the batch, all see the whole."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


def num_processes() -> int:
    """Return how many processes train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def process_index() -> int:
    """Return the rank of this process among those that train together."""
    return dist.get_rank() if num_processes() > 1 else 0


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

    The gradient of a row is the sum over the losses of all processes. So where every process
    computes the same loss of the whole, and gradients of parameters are then averaged by
    :func:`average_gradients`, they are those of one process that has all rows.

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
        total = grads[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total.split(ctx.sizes)[dist.get_rank()], None


def average_gradients(parameters: Iterable[Tensor]) -> None:
    """Replace every gradient by its mean over all processes."""
    grads = [p.grad for p in parameters if p.grad is not None]
    if num_processes() == 1 or not grads:
        return
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
