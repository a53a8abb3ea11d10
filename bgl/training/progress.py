"""Who listens to a training: bars, records, trackers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from bgl.datasets import ImageDataset

if TYPE_CHECKING:
    from bgl.training.evaluation import View


class Progress:
    """Where the loop reports to; this one keeps silent. The command line shows bars.

    A listener never changes a training: it leaves the global random generators as they are.
    """

    def begin(self, view: View, epochs: int) -> None:
        """A training begins, or goes on after ``epochs`` epochs; ``view`` shows its model as long
        as it runs."""

    def start(self, what: str, total: int) -> None:
        """A new stage with ``total`` items begins."""

    def advance(self, amount: int) -> None:
        """``amount`` items are done."""

    def measured(
        self,
        data: ImageDataset,
        vectors: dict[str, Tensor],
        gallery: dict[str, Tensor] | None = None,
    ) -> None:
        """``data`` was embedded, and is about to be measured (against a ``gallery``)."""

    def epoch(self, row: dict[str, Any]) -> None:
        """An epoch has ended; ``row`` is its line of metrics.csv."""


class Several(Progress):
    """Passes everything on to several listeners, in their order."""

    def __init__(self, *listeners: Progress) -> None:
        self.listeners = listeners

    def begin(self, view: View, epochs: int) -> None:
        for listener in self.listeners:
            listener.begin(view, epochs)

    def start(self, what: str, total: int) -> None:
        for listener in self.listeners:
            listener.start(what, total)

    def advance(self, amount: int) -> None:
        for listener in self.listeners:
            listener.advance(amount)

    def measured(
        self,
        data: ImageDataset,
        vectors: dict[str, Tensor],
        gallery: dict[str, Tensor] | None = None,
    ) -> None:
        for listener in self.listeners:
            listener.measured(data, vectors, gallery)

    def epoch(self, row: dict[str, Any]) -> None:
        for listener in self.listeners:
            listener.epoch(row)
