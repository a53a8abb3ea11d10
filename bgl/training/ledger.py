"""What the steps of a run have found, read while the next one is at work."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import normalize

from bgl._precision import at_least_float32
from bgl.augment import ClassStatistics
from bgl.training.checkpoint import Position
from bgl.training.config import TrainConfig
from bgl.training.step import Reading, Values


@dataclass(frozen=True)
class Done:
    """A step that was begun, with what is needed once its values are read."""

    reading: Reading
    features: Tensor
    labels: Tensor
    batch: Sequence[int]
    where: str


class Ledger:
    """The last step, until its values are read; what they say goes into the run's position.

    Args:
        config: What is trained.
        paths: The training images, to name a batch by.
        classes: Running means of the unit features, if there are batches of similar classes.
    """

    def __init__(
        self, config: TrainConfig, paths: list[str], classes: ClassStatistics | None
    ) -> None:
        self.skips = config.on_nonfinite == "skip"
        self.paths = paths
        self.classes = classes
        self.running: Done | None = None

    def settle(self, position: Position) -> None:
        """Read the values of the last step, and do what depends on them.

        Raises:
            FloatingPointError: If they are not finite and such batches are not skipped.
        """
        done, self.running = self.running, None
        if done is None:
            return
        values = done.reading.values()
        if values.finite:
            if self.classes is not None:  # every process has the whole batch
                unit = normalize(at_least_float32(done.features), dim=1)
                self.classes.update(unit, done.labels, shared=False)
            for name, value in values.losses.items():
                position.sums[name] = position.sums.get(name, 0.0) + value
            return
        description = describe_batch(done, values, self.paths)
        if not self.skips:
            raise FloatingPointError(description)
        warnings.warn(f"Skipped a batch. {description}", stacklevel=4)
        position.row["skipped_steps"] += 1


def describe_batch(done: Done, values: Values, paths: list[str]) -> str:
    """Describe a batch whose loss or gradient is not finite."""
    norms = done.features.float().norm(dim=1)
    return (
        f"The loss or its gradient is not finite in {done.where}: {values.losses}; gradient norm "
        f"{values.norm:.3g}; feature norms from {float(norms.min()):.3g} to "
        f"{float(norms.max()):.3g}; samples {list(done.batch)}; images "
        f"{[paths[i] for i in done.batch]}"
    )
