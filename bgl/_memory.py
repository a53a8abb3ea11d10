"""How much memory a process has used, and what to say when there is no more."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def peak_memory_mb() -> float:
    """Return the most memory that this process has held so far, in MB.

    Example:
        >>> 10 < peak_memory_mb() < 1_000_000
        True
    """
    try:
        import resource
    except ImportError:  # Windows
        import psutil  # comes with accelerate

        return float(psutil.Process().memory_info().peak_wset) / 2**20
    unit = 2**20 if sys.platform == "darwin" else 2**10  # bytes on macOS, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


@contextmanager
def out_of_memory(advice: str) -> Iterator[None]:
    """Raise one kind of error, with advice, for every way in which memory runs out.

    Args:
        advice: What to do, as the end of a sentence.

    Raises:
        MemoryError: If Python, PyTorch's CPU allocator or a GPU has no memory left.

    Example:
        >>> with out_of_memory("use a smaller batch"):
        ...     raise MemoryError
        Traceback (most recent call last):
        MemoryError: Out of memory: use a smaller batch
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        reason = str(error).partition("\n")[0].rstrip(". ")
        known = isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError))
        if not known and not any(
            words in reason for words in ("DefaultCPUAllocator", "CUDA error: out of memory")
        ):
            raise
        raise MemoryError(f"Out of memory{f' ({reason})' if reason else ''}: {advice}") from error
