"""End a run in good order when the user or the system asks for it."""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist

SIGNALS = (signal.SIGINT, signal.SIGTERM)
GRACE = 1.0  # seconds; torchrun and timeout pass on what the whole process group has got already


class Interrupted(KeyboardInterrupt):
    """A run has ended because of a signal; ``status`` is the corresponding exit status."""

    def __init__(self, number: int) -> None:
        super().__init__(f"interrupted by {signal.Signals(number).name}")
        self.status = 128 + number


class Interruption:
    """Note SIGINT and SIGTERM inside a ``with`` block, and leave it to :meth:`check` to act.

    Another signal, a second or more later, raises KeyboardInterrupt wherever the program is.
    Outside its block, and in threads other than the main one, which get no signals, there is never
    one to act on.

    Example:
        >>> with Interruption() as interruption:
        ...     signal.raise_signal(signal.SIGTERM)
        ...     try:
        ...         interruption.check()
        ...     except Interrupted as interrupted:
        ...         print(interrupted, interrupted.status)
        interrupted by SIGTERM 143
    """

    def __init__(self) -> None:
        self.received = 0
        self._when = 0.0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def check(self) -> None:
        """Raise if this or another process got a signal; all processes must call it together.

        They exchange it by way of the CPU, so that no GPU is waited for.

        Raises:
            Interrupted: On all processes alike.
        """
        received = self.received
        if dist.is_available() and dist.is_initialized():
            flag = torch.tensor(received)
            dist.all_reduce(flag, dist.ReduceOp.MAX)
            received = int(flag)
        if received:
            raise Interrupted(received)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if not self.received:
            self.received, self._when = number, time.monotonic()
        elif time.monotonic() - self._when >= GRACE:
            raise KeyboardInterrupt
