"""Batches of images, decoded by other processes while the model computes."""

from __future__ import annotations

import math
import multiprocessing
import os
import signal
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing import connection, resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.pool import ExceptionWithTraceback  # type: ignore[attr-defined]
from multiprocessing.process import BaseProcess
from multiprocessing.synchronize import Lock
from multiprocessing.util import Finalize
from typing import Protocol

import torch
from torch import Tensor

from bgl.images.reading import BrokenImageError

TIMEOUT = 600.0  # seconds without an image after which the workers count as stuck
MOST_WORKERS = 16  # by default; more seldom pay for one training process
AHEAD = 3  # batches in shared memory, one of them in use: 183 MB for 405 images of 224 px
BEAT = 2.0  # seconds after which an idle worker looks whether the main process still lives
PIECE = 8  # images that a worker takes at a time, so that all of them work on one batch
MOST_PIECES = 512  # of a batch; pipes hold as many notes without anybody reading them
SIGNALS = {signal.SIGINT, signal.SIGTERM}

Key = tuple[int, int]  # the index of an image, and the seed of its augmentation
Errors = dict[int, BrokenImageError]  # by the image's place in its batch
Batch = tuple[Tensor, Errors]


class Images(Protocol):
    """Anything that gives a uint8 image [3, S, S] for a key, or raises BrokenImageError."""

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


class ImageLoader:
    """Loads batches of images by key; its processes start when they are needed, until it is closed.

    Each process takes a few images at a time and writes them to their place in a batch that lies
    in shared memory, so that all work on the same batch, and nothing is copied to assemble it.

    Args:
        images: Where they come from.
        image_size: Side of every image in pixels.
        batch_size: Most images of a batch.
        workers: Loading processes; 0: this process loads.

    Example:
        >>> class Black:
        ...     def __getitem__(self, key):
        ...         return torch.zeros(3, 4, 4, dtype=torch.uint8)
        >>> with ImageLoader(Black(), image_size=4, batch_size=2) as loader:
        ...     [(len(x), broken) for x, broken in loader.load([[(0, 0), (1, 0)], [(2, 0)]])]
        [(2, {}), (1, {})]
    """

    def __init__(
        self, images: Images, *, image_size: int, batch_size: int, workers: int = 0
    ) -> None:
        self.images = images
        self.workers = workers
        self._shape = (batch_size, image_size, image_size, 3)
        self._piece = max(PIECE, math.ceil(batch_size / MOST_PIECES))
        self._pool: _Pool | None = None

    def load(self, batches: Sequence[Sequence[Key]]) -> Iterator[Batch]:
        """Load batches, without touching the global random generators.

        Yields:
            The images that could be read [n, 3, S, S], uint8, channels last, which hold until the
            next batch is asked for; and the error of each of the others.

        Raises:
            ChildProcessError: If a worker was killed, is stuck, or has no memory.
        """
        if self.workers == 0:
            for keys in batches:
                images = torch.empty(len(keys), *self._shape[1:], dtype=torch.uint8)
                yield _readable(images, _fill(images, self.images, keys))
            return
        if not batches:
            return
        if self._pool is None:
            pieces = sum(math.ceil(len(keys) / self._piece) for keys in batches)
            self._pool = _Pool(self.images, self._shape, self._piece, min(self.workers, pieces))
        try:
            yield from self._pool.load(batches)
        except BaseException:  # GeneratorExit too: nobody will fetch what is being loaded
            self.close()
            raise

    def close(self) -> None:
        """End the loading processes."""
        if self._pool is not None:
            self._pool.end()
            self._pool = None

    def __enter__(self) -> ImageLoader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Pool:
    """Processes that fill batches in shared memory, in whatever order they come to it."""

    def __init__(
        self, images: Images, shape: tuple[int, int, int, int], piece: int, workers: int
    ) -> None:
        try:
            self.batches = torch.empty(AHEAD, *shape, dtype=torch.uint8).share_memory_()
            self.keys = torch.empty(AHEAD, shape[0], 2, dtype=torch.int64).share_memory_()
        except RuntimeError as error:
            raise ChildProcessError(
                f"Expected {AHEAD * math.prod(shape) / 2**20:.0f} MiB of shared memory for images, "
                f"but got {error}: make /dev/shm larger (docker run --shm-size=8g), or load "
                "without processes: --workers 0"
            ) from error
        self.piece = piece
        method = multiprocessing.get_start_method()
        forked = sys.platform == "linux" and method == "forkserver"  # its children import anew
        context = multiprocessing.get_context("fork" if forked else method)
        reader, self.tasks = context.Pipe(duplex=False)
        self.lock = context.Lock()  # kept: a process that starts slowly opens it by its name
        self.workers: dict[Connection, BaseProcess] = {}
        self.end = Finalize(self, _kill, [self.workers], exitpriority=10)
        with _signals_blocked():
            for _ in range(workers):
                receiver, sender = context.Pipe(duplex=False)
                worker = context.Process(  # type: ignore[attr-defined]
                    target=_work,
                    args=(images, self.batches, self.keys, reader, self.lock, sender),
                    daemon=True,
                )
                worker.start()
                sender.close()
                self.workers[receiver] = worker
        reader.close()

    def load(self, batches: Sequence[Sequence[Key]]) -> Iterator[Batch]:
        coming = deque(self._ask(slot, keys) for slot, keys in enumerate(batches[:AHEAD]))
        for number, keys in enumerate(batches):
            slot = number % AHEAD
            missing, errors = coming[0]
            while missing:
                for place, start, outcome in self._receive():
                    coming[(place - slot) % AHEAD][0].remove(start)
                    coming[(place - slot) % AHEAD][1].update(outcome)
            coming.popleft()
            yield _readable(self.batches[slot, : len(keys)], errors)
            if number + AHEAD < len(batches):
                coming.append(self._ask(slot, batches[number + AHEAD]))

    def _ask(self, slot: int, keys: Sequence[Key]) -> tuple[set[int], Errors]:
        """Let workers fill a batch; return the places where pieces begin, and room for errors."""
        if keys:
            self.keys[slot, : len(keys)] = torch.tensor(keys)
        pieces = set()
        for start in range(0, len(keys), self.piece):
            pieces.add(start)
            with suppress(BrokenPipeError):  # all are dead, which shows when their work is missed
                self.tasks.send((slot, start, min(start + self.piece, len(keys))))
        return pieces, {}

    def _receive(self) -> Iterator[tuple[int, int, Errors]]:
        """Wait for pieces that are filled: slot, start and errors of each."""
        ends = {worker.sentinel: worker for worker in self.workers.values()}
        ready = connection.wait([*self.workers, *ends], TIMEOUT)
        if not ready:
            raise _lost(f"no image in time, timed out after {TIMEOUT:g} seconds")
        for sentinel in ends.keys() & set(ready):
            worker = ends[sentinel]
            worker.join()
            code = worker.exitcode or 0
            how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"exited: {code}"
            raise _lost(f"worker (pid {worker.pid}) {how}")
        for receiver in self.workers.keys() & set(ready):
            slot, start, outcome = receiver.recv()
            if isinstance(outcome, MemoryError):
                raise _lost("a worker is out of memory") from outcome
            if isinstance(outcome, Exception):
                raise outcome
            yield slot, start, outcome


def _work(
    images: Images,
    batches: Tensor,
    keys: Tensor,
    tasks: Connection,
    lock: Lock,
    results: Connection,
) -> None:
    """Fill pieces of batches until the main process ends."""
    torch.set_num_threads(1)
    main = multiprocessing.parent_process()
    assert main is not None
    while True:
        if not lock.acquire(timeout=BEAT):
            if _ended(main):
                return
            continue
        try:
            ready = connection.wait([tasks, main.sentinel], BEAT)
            if main.sentinel in ready or _ended(main):
                return
            if not ready:
                continue
            slot, start, stop = tasks.recv()
        finally:
            lock.release()
        outcome: Errors | ExceptionWithTraceback
        try:
            errors = _fill(
                batches[slot, start:stop],
                images,
                [(i, seed) for i, seed in keys[slot, start:stop].tolist()],
            )
            outcome = {start + place: error for place, error in errors.items()}
        except Exception as error:
            outcome = ExceptionWithTraceback(error, error.__traceback__)
        results.send((slot, start, outcome))


def _ended(main: BaseProcess) -> bool:
    """Return whether the main process has ended.

    Its sentinel alone does not tell: forked processes hold those of the ones before them open.
    """
    return sys.platform != "win32" and os.getppid() != main.pid


def _fill(out: Tensor, images: Images, keys: Sequence[Key]) -> Errors:
    """Load images into [N, S, S, 3]; return the errors of those that cannot be read."""
    found = {place: _put(out[place], images, key) for place, key in enumerate(keys)}
    return {place: error for place, error in found.items() if error is not None}


def _put(out: Tensor, images: Images, key: Key) -> BrokenImageError | None:
    try:
        out.copy_(images[key].permute(1, 2, 0))
    except BrokenImageError as error:
        return error
    return None


def _readable(batch: Tensor, errors: Errors) -> Batch:
    if errors:
        batch = batch[[place for place in range(len(batch)) if place not in errors]]
    return batch.permute(0, 3, 1, 2), errors


def _lost(reason: str) -> ChildProcessError:
    return ChildProcessError(
        f"Lost a process that loads images: {reason}. If the system ran out of memory, use fewer "
        "--workers"
    )


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


def _kill(workers: dict[Connection, BaseProcess]) -> None:
    """End workers, which have nothing to lose; also stuck ones, for which Python would wait."""
    for worker in workers.values():
        worker.kill()
    for receiver, worker in workers.items():
        worker.join()
        worker.close()
        receiver.close()
    workers.clear()
