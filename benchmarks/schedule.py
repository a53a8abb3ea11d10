"""Many runs by one command: what is missing is skipped, what fails is listed, Ctrl-C stops."""

from __future__ import annotations

from collections.abc import Callable

from rich.console import Console

from bgl.pipeline.outcome import Outcome


def run_all(trainings: Callable[[Outcome], None], console: Console) -> int:
    """Train, list what was skipped and what failed; returns the exit status.

    Data or weights that are not there skip a run; other errors fail it.

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
    status = 0
    for name, error in outcome.failed.items():
        skipped = isinstance(error, FileNotFoundError | ConnectionError)
        line = f"{'skipped' if skipped else 'failed'}: {name}: {' '.join(str(error).split())}"
        console.print(line, markup=False, highlight=False, soft_wrap=True)
        status |= not skipped
    return int(status)
