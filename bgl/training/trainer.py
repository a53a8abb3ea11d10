"""What every run does alike: take steps, keep what they find, and resume where it stopped."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from accelerate import PartialState
from torch import Tensor, nn
from torch.nn.functional import normalize

from bgl._io import remove_leftovers
from bgl._precision import at_least_float32
from bgl.augment import ClassStatistics
from bgl.datasets import ImageDataset
from bgl.images import train_transform
from bgl.images.loading import ImageLoader, Key, num_workers
from bgl.models import Encoder
from bgl.samplers import BatchSampler
from bgl.training.build import crop_side
from bgl.training.checkpoint import Checkpoint, Position, Row
from bgl.training.config import TrainConfig
from bgl.training.distributed import broadcast_module, num_processes, process_index, shares
from bgl.training.history import graph_statistics, write_history
from bgl.training.interruption import Interrupted, Interruption
from bgl.training.loading import SeededCrops, seeded_batches
from bgl.training.progress import Progress, TrainingRun
from bgl.training.step import Reading, Step, Throughput


class Pending(NamedTuple):
    """A step that is at work, with what is needed once its values are read."""

    reading: Reading
    features: Tensor
    labels: Tensor
    batch: Sequence[int]
    where: str


@dataclass
class Trainer:
    """Take the steps of a run, epoch after epoch, from where its checkpoint stands.

    Args:
        config: How to train.
        data: The images to train on.
        labels: Their labels, as the losses take them.
        encoder: The model that is measured, which need not be the one that is trained.
        sampler: What is in a batch.
        step: Trains on a batch.
        schedule: Moves the rates after each step.
        checkpoint: Where the run is kept; it is loaded here.
        choose_epoch: Names the epoch whose model is kept, given the rows of all so far.
        should_continue: Whether another epoch follows these rows.
        progress: Told about the run.
        interruption: Looked at after every step.
        classes: Running means of the unit features, if there are batches of similar classes.

    Attributes:
        position: How far the run has come; its ``row`` is that of the running epoch.
    """

    config: TrainConfig
    data: ImageDataset
    labels: Tensor
    encoder: Encoder
    sampler: BatchSampler
    step: Step
    schedule: torch.optim.lr_scheduler.LRScheduler
    checkpoint: Checkpoint
    choose_epoch: Callable[[list[Row]], int]
    should_continue: Callable[[list[Row]], bool]
    progress: Progress
    interruption: Interruption
    classes: ClassStatistics | None = None

    def __post_init__(self) -> None:
        about, device = self.encoder.config, self.encoder.device
        self.shares = shares(self.config.batch_size, num_processes())  # of a batch
        in_memory = isinstance(self.data.images, Tensor)  # which a GPU outruns all the same
        side, scale = crop_side(self.config), (self.config.crop_scale, 1.0)
        crop = train_transform(side, about.mean, about.std, scale).crop
        self.loader = ImageLoader(
            SeededCrops(self.data, crop),
            image_size=side,
            batch_size=len(self.shares[process_index()]),
            workers=num_workers(self.config.workers, in_memory and device.type == "cpu"),
        )
        if process_index() == 0:
            self.checkpoint.folder.mkdir(parents=True, exist_ok=True)
            remove_leftovers(self.checkpoint.folder)
        self.throughput = Throughput()
        self.pending: Pending | None = None  # the last step, until its values are read
        resumed = self.checkpoint.load()
        self.resumed = resumed is not None
        self.position = resumed or Position()

    @property
    def history(self) -> list[Row]:
        """The rows of the epochs that have ended."""
        return self.position.history

    @property
    def epochs(self) -> int:
        """How many epochs were trained."""
        return self.history[-1]["epoch"] if self.history else 0

    @contextmanager
    def running(self) -> Iterator[None]:
        """Tell the listeners, and write the checkpoint when the block is stopped.

        Raises:
            Interrupted, ChildProcessError: When it is written.
        """
        self.progress.begin(TrainingRun(self.config, self.encoder, self.resumed), self.epochs)
        try:
            yield
        except (Interrupted, ChildProcessError) as error:  # the latter between two steps as well
            self.settle()
            self.checkpoint.save(self.position)
            if isinstance(error, Interrupted):
                PartialState().wait_for_everyone()
            elif self.interruption.received:  # whoever stops this run may have ended that too
                raise Interrupted(self.interruption.received) from error
            raise
        finally:
            self.loader.close()

    def images(self, batches: Sequence[Sequence[Key]]) -> Iterator[Tensor]:
        """Load augmented images [n, 3, H, W] of this process onto the device, normalised.

        Raises:
            BrokenImageError: If an image cannot be read.
            ChildProcessError: If a loading process was lost.
        """
        for images, broken in self.loader.load(batches):
            if broken:
                raise broken[min(broken)]
            yield self.encoder.to_device(images)

    def begin_epoch(self) -> None:
        """Begin the row of the epoch after the last one."""
        self.position.row = {"epoch": self.epochs + 1, "lr": self.schedule.get_last_lr()[0]}
        if self.config.on_nonfinite == "skip":
            self.position.row["skipped_steps"] = 0

    def train_epoch(self, plain_criterion: nn.Module, criterion: nn.Module) -> None:
        """Take the steps of an epoch that are left; its row gets the means of the losses.

        Raises:
            FloatingPointError: If no loss was finite, or one was not and is not to be skipped.
        """
        config, position = self.config, self.position
        epoch, row = position.row["epoch"], position.row
        batches = seeded_batches(self.sampler, config.seed, len(self.history))
        indices = torch.tensor([[i for i, _ in batch] for batch in batches])
        labels = self.labels[indices].to(self.encoder.device)  # all at once: one copy
        own = self.shares[process_index()]
        self.progress.start(f"epoch {epoch}/{config.epochs}", len(batches))
        self.progress.advance(position.step)
        loaded = self.images([batch[own.start : own.stop] for batch in batches[position.step :]])
        for images in self.throughput.watch(loaded, config.batch_size):
            batch, seeds = zip(*batches[position.step], strict=True)
            last = position.step + 1 == len(batches)
            output, reading = self.step(
                images,
                labels[position.step],
                plain_criterion,
                criterion,
                seed=seeds[own.start],
                sizes=[len(part) for part in self.shares],
                indices=batch,
                progress=(epoch - 1) / config.epochs,
                return_graph=last and bool(config.block_names),
            )
            self.settle()  # the step before: this one is at work meanwhile
            where = f"epoch {epoch}, step {position.step + 1}"
            features = output.features.detach()
            self.pending = Pending(reading, features, labels[position.step], batch, where)
            self.schedule.step()
            row |= graph_statistics(output.graphs)
            position.step += 1
            self.progress.advance(1)
            self.interruption.check()
        self.settle()
        if self.step.average is not None:
            self.step.average.after_epoch(self.step.model)
        good = len(batches) - row.get("skipped_steps", 0)
        if good == 0:
            raise FloatingPointError(f"No loss of epoch {epoch} was finite")
        row |= {name: value / good for name, value in position.sums.items()}

    def settle(self) -> None:
        """Read the values of the last step, and do what depends on them.

        Raises:
            FloatingPointError: If they are not finite and such batches are not skipped.
        """
        pending, self.pending = self.pending, None
        if pending is None:
            return
        values, position = pending.reading.values(), self.position
        if values.finite:
            if self.classes is not None:  # every process has the whole batch
                unit = normalize(at_least_float32(pending.features), dim=1)
                self.classes.update(unit, pending.labels, shared=False)
            for name, value in values.losses.items():
                position.sums[name] = position.sums.get(name, 0.0) + value
            return
        norms = pending.features.float().norm(dim=1)
        description = (
            f"The loss or its gradient is not finite in {pending.where}: {values.losses}; gradient "
            f"norm {values.norm:.3g}; feature norms from {float(norms.min()):.3g} to "
            f"{float(norms.max()):.3g}; samples {list(pending.batch)}; images "
            f"{[self.data.paths[i] for i in pending.batch]}"
        )
        if self.config.on_nonfinite != "skip":
            raise FloatingPointError(description)
        warnings.warn(f"Skipped a batch. {description}", stacklevel=4)
        position.row["skipped_steps"] += 1

    def end_epoch(self, found: Row) -> bool:
        """Keep what was found of an epoch, and its model if it is the best so far.

        Returns:
            Whether it is.
        """
        row = self.position.row | found | {"seconds": self.checkpoint.seconds}
        self.history.append(row)
        self.position = Position(self.history)
        chosen = self.choose_epoch(self.history) == row["epoch"]
        if process_index() == 0:
            if chosen:
                weights = self.encoder.model.state_dict()
                self.checkpoint.weights = {n: t.to("cpu", copy=True) for n, t in weights.items()}
            write_history(self.checkpoint.folder / "metrics.csv", self.history)
        if self.checkpoint.is_due or not self.should_continue(self.history):
            self.checkpoint.save(self.position)
        if row["epoch"] > 0:
            self.progress.epoch(row)
        self.interruption.check()
        return chosen

    def load_chosen(self) -> None:
        """Give the measured model the weights of the chosen epoch, on all processes."""
        if process_index() == 0:
            self.encoder.model.load_state_dict(self.checkpoint.weights)
        broadcast_module(self.encoder.model)
