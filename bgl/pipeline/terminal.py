"""How far a run is: bars in a terminal, and a line now and then in a log."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from bgl.training import Progress
from bgl.training.progress import TrainingRun

REPORT_EVERY = 30.0  # seconds between lines where there is no terminal to show a bar


class TerminalProgress(Progress):
    """Progress bars, or a line now and then where there is no terminal, and a line per epoch."""

    def __init__(self, console: Console) -> None:
        self.bars = Bars(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[rate]}"),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self.console = console
        self.task: Any = None
        self.run: TrainingRun | None = None
        self.first = self.epochs = 0  # epochs of `run` done when it began, and now
        self.what, self.total, self.done = "", 1, 0
        self.size = 1  # images of an item
        self.began = self.started = self.reported = time.perf_counter()

    def begin(self, run: TrainingRun, epochs: int) -> None:
        self.run, self.first, self.epochs = run, epochs, epochs
        self.began = time.perf_counter()

    def start(self, what: str, total: int) -> None:
        if self.task is not None:
            self.bars.remove_task(self.task)
        self.task = self.bars.add_task(what, total=total, rate="")
        self.what, self.total, self.done = what, total, 0
        # items are batches in an epoch, and images elsewhere
        training = self.run is not None and what.startswith("epoch ")
        self.size = self.run.config.batch_size if self.run is not None and training else 1
        self.started = time.perf_counter()

    def advance(self, amount: int) -> None:
        self.done += amount
        now = time.perf_counter()
        rate = f"{self.done * self.size / max(now - self.started, 1e-9):,.0f} images/s"
        self.bars.update(self.task, advance=amount, rate=rate)
        if amount and not self.console.is_terminal and now - self.reported >= REPORT_EVERY:
            self.reported = now
            parts = [f"{self.what}: {self.done:,} of {self.total:,}", rate, *self._left(now)]
            self.say(", ".join(parts))

    def _left(self, now: float) -> list[str]:
        """Say how long the training of the model takes from here, at its pace so far.

        Where no model is trained: how long the stage takes.
        """
        if self.run is None and self.done:
            seconds = (now - self.started) / self.done * (self.total - self.done)
            return [f"{timedelta(seconds=round(seconds))} left"]
        done = self.epochs + self.done / self.total
        if self.run is None or not self.what.startswith("epoch ") or done <= self.first:
            return []
        left = (now - self.began) / (done - self.first) * (self.run.config.epochs - done)
        return [f"{timedelta(seconds=round(left))} left for this model"]

    def epoch(self, row: dict[str, Any]) -> None:
        self.epochs = row["epoch"]
        parts = [f"epoch {row['epoch']:>3}", f"loss {row['loss']:.3f}"]
        if "loss_graph" in row:
            parts.append(f"(plain {row['loss_plain']:.3f}, graph {row['loss_graph']:.3f})")
        for part, title in (("val", "validation"), ("test", "test")):
            for embedding in ("backbone", "head"):
                if (name := f"{part}_{embedding}") + "_map@r" in row:
                    recall, precision = (row[f"{name}_{m}"] for m in ("recall@1", "map@r"))
                    parts.append(f"{title} {embedding}: R@1 {recall:.1%}, MAP@R {precision:.1%}")
        if "agreement" in row:
            parts.append(f"agreement of neighbours {row['agreement']:.1%}")
        if row.get("skipped_steps"):
            parts.append(f"{row['skipped_steps']} batches skipped: not finite")
        self.say("  ".join(parts))

    def say(self, line: str) -> None:
        """Print a line above the bars, as it is."""
        self.console.print(line, highlight=False, markup=False, soft_wrap=True)
