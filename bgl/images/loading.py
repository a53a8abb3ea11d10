"""Batches of images, decoded by other processes while the model computes."""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from types import FrameType
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from bgl.images.reading import BrokenImageError

TIMEOUT = 600.0  # seconds to wait for a batch before a worker counts as stuck
MOST_WORKERS = 16  # by default; more seldom pay for one training process
SIGNALS = {signal.SIGINT, signal.SIGTERM}
LOST = re.compile(r"DataLoader (worker \(pid|timed out)")
NO_SHARED_MEMORY = re.compile(r"Bus error|shared memory|</torch_|ancdata")

Key = TypeVar("Key", contravariant=True)
Batch = tuple[Tensor, dict[int, BrokenImageError]]


class Images(Protocol[Key]):
    """Anything that gives an image [3, H, W] for a key, or raises BrokenImageError."""

    def __getitem__(self, key: Key, /) -> Tensor: ...


def num_workers(workers: int, in_memory: bool = False) -> int:
    """Return the number of loading processes: as many as asked for, or for -1 a default.

    The default is one for every core that this process may use, at most 16, divided among the
    processes that ``torchrun`` has started on this machine; none for images in memory.

    Example:
        >>> num_workers(3), num_workers(-1, in_memory=True)
        (3, 0)
    """
    if workers >= 0:
        return workers
    if in_memory:
        return 0
    if hasattr(os, "sched_getaffinity"):  # Linux; the cores of this job, not of the machine
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    return min(MOST_WORKERS, max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))


def load_batches(
    images: Images[Key],
    batches: list[list[Key]],
    workers: int = 0,
    *,
    pin_memory: bool = False,
    seed: int = 0,
) -> Iterator[Batch]:
    """Load batches of images without touching the global random generators.

    Args:
        images: Where they come from.
        batches: The keys of every batch.
        workers: Loading processes, at most one for each batch; 0: this process loads.
        pin_memory: Whether batches go to a GPU.
        seed: Of the first worker's own generators; the others count up from it.

    Yields:
        The images that could be read [n, 3, H, W] and, by its place in the batch, the error of
        each of the others.

    Raises:
        ChildProcessError: If a worker was killed, is stuck, or has no memory.

    Example:
        >>> [(len(x), broken) for x, broken in load_batches(torch.zeros(3, 3, 4, 4), [[0, 1], [2]])]
        [(2, {}), (1, {})]
    """
    workers = min(workers, len(batches))
    # where children of a fork server die nobody is told: their loss would show after TIMEOUT only
    forked = sys.platform == "linux" and multiprocessing.get_start_method() == "forkserver"
    loader = DataLoader(
        _Checked(images),
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=_collate,
        pin_memory=pin_memory,
        timeout=TIMEOUT if workers else 0.0,
        generator=torch.Generator().manual_seed(seed),
        multiprocessing_context="fork" if workers and forked else None,
    )
    others = set(multiprocessing.active_children())
    iterator, children = None, set()
    try:
        with _signals_blocked():
            iterator = iter(loader)
        children = set(multiprocessing.active_children()) - others
        if children:
            yield from _losses_told_between_batches(iterator)
        else:
            yield from iterator
    except (RuntimeError, MemoryError) as error:
        memory = isinstance(error, MemoryError)
        shared = NO_SHARED_MEMORY.search(str(error)) is not None
        if not workers or not (memory or shared or LOST.match(str(error))):
            raise
        _kill(children)
        reason = str(error).partition("\n")[0].split(". ")[0].rstrip(". ")
        advice = (
            "Shared memory is full: make /dev/shm larger (docker run --shm-size=8g), or use fewer "
            "--workers"
            if shared
            else "If the system ran out of memory, use fewer --workers"
        )
        raise ChildProcessError(f"Lost a process that loads images: {reason}. {advice}") from error
    finally:
        del iterator  # ends its workers, unless they are stuck
        _kill(child for child in children if child.is_alive())


class _Checked(Dataset[Tensor | BrokenImageError], Generic[Key]):
    """Images by key, with the error in the place of one that cannot be read."""

    def __init__(self, images: Images[Key]) -> None:
        self.images = images

    def __getitem__(self, key: Key) -> Tensor | BrokenImageError:
        try:
            return self.images[key]
        except BrokenImageError as error:
            return error


def _collate(items: list[Tensor | BrokenImageError]) -> Batch:
    images = [item for item in items if isinstance(item, Tensor)]
    broken = {i: item for i, item in enumerate(items) if isinstance(item, BrokenImageError)}
    return default_collate(images) if images else torch.empty(0), broken


def _losses_told_between_batches(batches: Iterator[Batch]) -> Iterator[Batch]:
    """Raise the error of a lost worker where the next batch is asked for, and nowhere else.

    PyTorch raises it in a signal handler, wherever the program is. In the middle of a training
    step nothing could be saved any more.
    """
    if not _handles_children():
        yield from batches
        return
    pytorchs, lost = signal.getsignal(signal.SIGCHLD), False

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal lost
        lost = True

    try:
        while True:
            signal.signal(signal.SIGCHLD, pytorchs)
            if lost and callable(pytorchs):
                pytorchs(signal.SIGCHLD, None)
            batch = next(batches, None)
            signal.signal(signal.SIGCHLD, note)
            if batch is None:
                return
            yield batch
    finally:
        signal.signal(signal.SIGCHLD, pytorchs)


def _handles_children() -> bool:
    """Return whether SIGCHLD, which Windows does not have, is handled in this thread."""
    return hasattr(signal, "SIGCHLD") and threading.current_thread() is threading.main_thread()


@contextmanager
def _signals_blocked() -> Iterator[None]:
    """Start processes that never get SIGINT and SIGTERM.

    A terminal, ``timeout``, Slurm and systemd send these to all processes at once. The main one
    must finish its step, for which it needs the others. They inherit the mask, and end with it.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows has no such signals
        yield
        return
    if multiprocessing.get_start_method() == "spawn":
        resource_tracker.ensure_running()  # lifts the mask where it is started inside
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _kill(children: Iterable[Any]) -> None:
    """Kill workers that do not end: Python would wait for them when it ends."""
    # PyTorch's handler would raise once more for each of them
    handler = signal.signal(signal.SIGCHLD, signal.SIG_DFL) if _handles_children() else None
    for child in children:
        child.kill()
        child.join()
    if _handles_children():
        signal.signal(signal.SIGCHLD, handler)
