"""Many runs by one command: what is missing is skipped, what fails is listed, Ctrl-C stops."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from torch import OutOfMemoryError


class Outcome:
    """Runs that did not come to a result, by name, with the reason."""

    def __init__(self) -> None:
        self.skipped: dict[str, str] = {}
        self.failed: dict[str, str] = {}

    @contextmanager
    def attempt(self, name: str) -> Iterator[None]:
        """Note a failure of the block under ``name`` and go on behind it.

        Data or weights that are not there skip a run; other errors fail it.
        """
        try:
            yield
        except (FileNotFoundError, ConnectionError) as error:
            self.skipped[name] = str(error)
        except (ValueError, OSError, FloatingPointError, OutOfMemoryError) as error:
            self.failed[name] = str(error)


def run_all(trainings: Callable[[Outcome], None], console: Console) -> int:
    """Train, list what was skipped and what failed; returns the exit status.

    Args:
        trainings: Trains what is not finished, and notes the rest.
        console: Where to print.
    """
    outcome = Outcome()
    try:
        trainings(outcome)
    except KeyboardInterrupt as stopped:
        console.print("\nstopped; to go on, repeat the command")
        return int(getattr(stopped, "status", 130))
    for what, reasons in (("skipped", outcome.skipped), ("failed", outcome.failed)):
        for name, reason in reasons.items():
            line = f"{what}: {name}: {' '.join(reason.split())}"
            console.print(line, markup=False, highlight=False, soft_wrap=True)
    return int(bool(outcome.failed))
