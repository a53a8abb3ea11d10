"""Load the data that a configuration names, for training, measuring and pages alike."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Collection

import torch
from torch import Tensor

from bgl.datasets import ImageDataset, Splits, download, load_dataset
from bgl.pipeline.options import Command
from bgl.training import TrainConfig

ENOUGH = 8  # images of a class, where only some images are taken


def load_splits(config: TrainConfig) -> Splits:
    """Load the data a configuration names; without validation classes in the protocol "paper".

    Classes and images are divided alike for every seed of a training, so that trainings with the
    same seed, and the seeds of a table, are compared on the same images.

    With ``config.download`` they are fetched first if need be; processes that want the same data
    wait for each other.

    Raises:
        ValueError: If the configuration and the files do not fit.
        FileNotFoundError: If the folder or a part of it does not exist.
        ConnectionError: If a download breaks off.
    """
    if config.download and config.data_root is not None:
        download(config.dataset, config.data_root)
    paper = config.protocol == "paper"
    splits = load_dataset(
        config.dataset,
        config.data_root,
        val_fraction=0.0 if paper else config.val_fraction,
        skip_broken=config.skip_broken,
        allow_partial=config.allow_partial,
        resplit=config.resplit,
        table=config.table,
    )
    # packaged data have fixed validation classes, which are not used then
    splits = dataclasses.replace(splits, val=None) if paper else splits
    return at_most(splits, config.max_images)


def at_most(splits: Splits, most: int | None) -> Splits:
    """Take some images of each part, as many classes as there is room for.

    Query and gallery have the same classes in the end.
    """
    if most is None:
        return splits
    together: list[list[ImageDataset | None]]
    together = [[splits.train], [splits.val], [splits.test, splits.gallery]]
    parts = [_some([part for part in kept if part is not None], most) for kept in together]
    (train,), val, (test, *gallery) = parts
    return dataclasses.replace(
        splits,
        train=train,
        val=val[0] if val else None,
        test=test,
        gallery=gallery[0] if gallery else None,
    )


def _some(parts: list[ImageDataset], most: int) -> list[ImageDataset]:
    """Take the same classes of parts that share them, evenly spread."""
    if all(len(part) <= most for part in parts):
        return parts
    counts = torch.stack([part.labels.bincount(minlength=part.num_classes) for part in parts])
    classes = counts.all(0).nonzero().flatten()
    if len(classes) == 0:
        return parts
    each = max(ENOUGH, most // len(classes))
    room = len(classes) * most // int(counts[:, classes].clamp(max=each).sum(1).max())
    places = torch.linspace(0, len(classes) - 1, max(2, min(room, len(classes)))).long()
    return [part.subset(_first(part.labels, classes[places], each)) for part in parts]


def _first(labels: Tensor, classes: Tensor, each: int) -> Tensor:
    """Find the first images of each class, in the order of the data."""
    rows = [(labels == c).nonzero().flatten()[:each] for c in classes]
    return torch.cat(rows).sort().values


def fit_batches(command: Command, splits: Splits) -> Command:
    """Let the size of a batch follow the data, where nobody has set it.

    Warns:
        UserWarning: If it differs from the default.
    """
    may_follow = command.free or [frozenset[str]()] * len(command.configs)
    configs = [
        fit_batch(config, free, splits.train)
        for config, free in zip(command.configs, may_follow, strict=True)
    ]
    changed = [new for new, old in zip(configs, command.configs, strict=True) if new != old]
    for size, each in dict.fromkeys((config.batch_size, config.per_class) for config in changed):
        warnings.warn(
            f"Batches have {size} images, {each} of each of {size // each} classes, to fit the "
            "data; --batch-size and --per-class set it",
            UserWarning,
            stacklevel=2,
        )
    if command.quick:
        configs = [_cover_classes(config, splits.train) for config in configs]
    return dataclasses.replace(command, configs=configs, free=())


def _cover_classes(config: TrainConfig, data: ImageDataset) -> TrainConfig:
    """Let few batches be as many as have every class in one."""
    needed = -(-data.num_classes // max(1, config.batch_size // config.per_class))
    batches = max(config.batches_per_epoch or 1, needed)
    return dataclasses.replace(config, batches_per_epoch=batches)


def fit_batch(config: TrainConfig, free: Collection[str], data: ImageDataset) -> TrainConfig:
    """Choose the largest batch up to the default that the data can fill.

    Half of the classes or more have as many images as a batch takes of each (2 at least).
    """
    batch_size, per_class = config.batch_size, config.per_class
    if "per_class" in free:
        images = sorted(data.labels.bincount().tolist())
        fitting = min(per_class, max(2, images[len(images) // 2]))
        if "batch_size" in free or batch_size % fitting == 0:
            per_class = fitting
    if "batch_size" in free:
        batch_size = min(batch_size // per_class, data.num_classes) * per_class
    return dataclasses.replace(config, batch_size=batch_size, per_class=per_class)
