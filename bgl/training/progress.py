"""Listeners of a run: progress bars, records, trackers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from bgl.datasets import ImageDataset
from bgl.models import Encoder
from bgl.training.config import TrainConfig

Vectors = dict[str, Tensor]  # embeddings of some images, by the output of the model they are


@dataclass(frozen=True)
class TrainingRun:
    """A run in progress, as its listeners see it.

    Args:
        config: What is trained.
        encoder: The model as it is at the moment.
        resumed: Whether the run was resumed from a checkpoint.
    """

    config: TrainConfig
    encoder: Encoder
    resumed: bool = False


class Progress:
    """Listener of a run; this one ignores everything, subclasses override what they need.

    A listener never changes a run: it leaves the global random generators as they are.
    """

    def begin(self, run: TrainingRun, epochs: int) -> None:
        """Note that a run begins, or resumes after ``epochs`` epochs."""

    def start(self, what: str, total: int) -> None:
        """Note that a stage with ``total`` items begins."""

    def advance(self, amount: int) -> None:
        """Note that ``amount`` items are done."""

    def measured(
        self, data: ImageDataset, vectors: Vectors, gallery: Vectors | None = None
    ) -> None:
        """Note the embeddings of ``data``, about to be measured (against a ``gallery``)."""

    def epoch(self, row: dict[str, Any]) -> None:
        """Note the end of an epoch; ``row`` is its line of metrics.csv."""


class ProgressList(Progress):
    """Pass everything on to several listeners, in their order."""

    def __init__(self, *listeners: Progress) -> None:
        self.listeners = listeners

    def begin(self, run: TrainingRun, epochs: int) -> None:
        for listener in self.listeners:
            listener.begin(run, epochs)

    def start(self, what: str, total: int) -> None:
        for listener in self.listeners:
            listener.start(what, total)

    def advance(self, amount: int) -> None:
        for listener in self.listeners:
            listener.advance(amount)

    def measured(
        self, data: ImageDataset, vectors: Vectors, gallery: Vectors | None = None
    ) -> None:
        for listener in self.listeners:
            listener.measured(data, vectors, gallery)

    def epoch(self, row: dict[str, Any]) -> None:
        for listener in self.listeners:
            listener.epoch(row)
