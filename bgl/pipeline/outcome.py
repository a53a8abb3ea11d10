"""Several runs by one command: one that fails does not end the others."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from bgl.training.distributed import num_processes

#: What can go wrong with a run, and not with the code.
FAILURES = (ValueError, OSError, FloatingPointError, MemoryError, torch.cuda.OutOfMemoryError)


class Outcome:
    """Runs that did not come to a result, by name, and why.

    Example:
        >>> outcome = Outcome()
        >>> with outcome.attempt("dybgr-seed0"):
        ...     raise FloatingPointError("The loss is not finite")
        >>> outcome.failed
        {'dybgr-seed0': FloatingPointError('The loss is not finite')}
    """

    def __init__(self) -> None:
        self.failed: dict[str, Exception] = {}

    @contextmanager
    def attempt(self, name: str) -> Iterator[None]:
        """Note a failure of the block under ``name`` and go on behind it.

        With several processes it is raised: another one may be waiting for this one.
        """
        try:
            yield
        except FAILURES as error:
            if num_processes() > 1:
                raise
            self.failed[name] = error
            cause: BaseException | None = error
            while cause is not None:  # their frames hold the model, on a GPU its memory
                traceback.clear_frames(cause.__traceback__)
                cause = cause.__cause__ or cause.__context__
