"""Training an encoder through its batch graph: one function that reads from top to bottom."""

from __future__ import annotations

import math
import resource
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import set_seed
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import normalize
from torch.nn.modules.batchnorm import _BatchNorm

from bgl import models
from bgl._io import remove_leftovers, write_tensors
from bgl._precision import at_least_float32
from bgl.augment import AugmentedLoss, ClassStatistics
from bgl.datasets import ImageDataset, Splits
from bgl.images import train_transform
from bgl.models import BackboneInfo
from bgl.models.files import WEIGHTS_FILE
from bgl.samplers import ClassBalancedSampler
from bgl.training.build import (
    build_augmentation,
    build_criterion,
    build_model,
    describe_model,
    deterministic_algorithms,
    make_accelerator,
    make_optimizer,
    make_schedule,
)
from bgl.training.checkpoint import (
    CHECKPOINT_FILE,
    Position,
    load_checkpoint,
    save_checkpoint,
)
from bgl.training.config import TrainConfig
from bgl.training.distributed import average_gradients, gather_rows, own_random_numbers, shares
from bgl.training.evaluation import Metrics, View
from bgl.training.history import chosen_epoch, graph_statistics, write_history
from bgl.training.interruption import Interrupted, Interruption
from bgl.training.loading import dead_workers_named, deal, num_workers, train_loader
from bgl.training.progress import Progress


@dataclass
class TrainResult:
    """What a finished training leaves behind."""

    metrics: dict[str, Metrics]  # test metrics by embedding, of the chosen epoch
    chosen_epoch: int
    history: list[dict[str, Any]]
    backbone: BackboneInfo
    dimensions: dict[str, int]  # by embedding
    num_parameters: int
    seconds: float
    peak_memory_mb: float


def train(
    config: TrainConfig,
    splits: Splits,
    folder: str | Path,
    progress: Progress | None = None,
) -> TrainResult:
    """Train, choose the epoch on validation classes, and measure the test classes once.

    With ``config.protocol`` "paper" the epoch is chosen on the test classes instead: see
    :class:`TrainConfig`. The result is optimistic.

    The folder receives ``metrics.csv`` (a line per epoch), the model of the chosen epoch
    (``model.safetensors`` and ``model.json``, for :func:`bgl.models.load`),
    ``embeddings.safetensors`` (the training set's, by that model) and, while the training runs,
    ``checkpoint.pt``: a training that was interrupted goes on from there when called again with
    the same configuration and folder, with the same result as if it had not been interrupted.
    The checkpoint is written after every epoch, and after the running step on SIGINT or SIGTERM.

    Where ``torch.distributed`` runs (``torchrun``), all processes call it together, with the same
    folder. They train as one: graph, losses and statistics are those of the whole batch. The
    first process alone writes.

    Args:
        config: What to train.
        splits: The data; its transforms are set here.
        folder: Where files go; made if needed.
        progress: Told about stages, items, measurements and epochs.

    Raises:
        ValueError: If configuration and data do not fit, or ``checkpoint.pt`` is not of this
            configuration and these data.
        FloatingPointError: If the loss or gradient of a batch is not finite; the message names
            the batch.
        Interrupted: After SIGINT or SIGTERM, when the checkpoint is written.
        BrokenImageError: If an image cannot be read, or has vanished.
        ChildProcessError: If a process that loads images was killed.
        OSError: If a file cannot be written; the checkpoint before it is left as it was.
    """
    with (
        deterministic_algorithms(config.deterministic),
        dead_workers_named(),
        Interruption() as interruption,
    ):
        return _train(config, splits, Path(folder), progress or Progress(), interruption)


def _train(
    config: TrainConfig,
    splits: Splits,
    folder: Path,
    progress: Progress,
    interruption: Interruption,
) -> TrainResult:
    set_seed(config.seed)
    accelerator = make_accelerator(config.device)
    device = accelerator.device
    check_processes(config, accelerator.num_processes)
    check_classes(config, splits)
    if accelerator.is_main_process:
        folder.mkdir(parents=True, exist_ok=True)
        remove_leftovers(folder)

    model, info = build_model(config)
    criterion = build_criterion(config, splits.train.num_classes)
    augmentation = build_augmentation(config, splits.train.num_classes)
    data = splits.train.with_transform(
        train_transform(config.image_size, info.mean, info.std, (config.crop_scale, 1.0))
    )
    sampler = ClassBalancedSampler(
        data.labels,
        config.batch_size,
        config.per_class,
        config.seed,
        config.batches_per_epoch,
        config.class_neighbors,
    )
    optimizer = make_optimizer(config, model.to(device), criterion.to(device))
    schedule = make_schedule(config, optimizer, steps=config.epochs * len(sampler))

    parts = {"model": model, "criterion": criterion, "optimizer": optimizer, "schedule": schedule}
    if config.class_neighbors:
        classes = ClassStatistics(splits.train.num_classes, info.num_features).to(device)
        parts |= {"sampler": sampler, "classes": classes}
    if augmentation is not None:
        parts["augmentation"] = augmentation.to(device)
        augmented = AugmentedLoss(criterion.loss, augmentation, criterion.miner)
    position = Position()
    digest = splits.digest
    checkpoint = folder / CHECKPOINT_FILE
    resumed = checkpoint.exists()
    if resumed:
        position = load_checkpoint(checkpoint, config, digest, parts)
    started = time.perf_counter() - position.seconds
    history = position.history

    def save() -> None:
        position.seconds = time.perf_counter() - started
        if accelerator.is_main_process:
            save_checkpoint(checkpoint, config, digest, parts, position)
        accelerator.wait_for_everyone()  # nobody goes on before it is written

    view = View(model, config, info, accelerator, progress, interruption, resumed)
    progress.begin(view, len(history))
    try:
        for epoch in range(len(history), config.epochs):
            plain_criterion: nn.Module = criterion
            if augmentation is not None:
                first = round(config.iaa.start * config.epochs)
                if epoch >= first:
                    if position.step == 0 and (epoch - first) % config.iaa.update_every == 0:
                        estimate(augmentation.statistics, view, splits.train)
                    augmentation.set_epoch(epoch + 1, config.epochs)
                    plain_criterion = augmented

            model.train()
            if not config.train_batch_norm:
                freeze_batch_norm(model.backbone)
            if config.class_neighbors and position.step == 0 and epoch > 0:
                sampler.set_positions(classes.mean)
            batches = deal(sampler, epoch)
            own = shares(config.batch_size, accelerator.num_processes)
            mine = own[accelerator.process_index]
            images_of = train_loader(
                data,
                [batch[mine.start : mine.stop] for batch in batches[position.step :]],
                num_workers(config.workers, data),
                pin_memory=device.type == "cuda",
            )
            if position.step == 0:
                position.row = {"epoch": epoch + 1, "lr": schedule.get_last_lr()[0]}
                if config.on_nonfinite == "skip":
                    position.row["skipped_steps"] = 0
            row = position.row
            progress.start(f"epoch {epoch + 1}/{config.epochs}", len(sampler))
            progress.advance(position.step)
            for images in images_of:
                batch, seeds = zip(*batches[position.step], strict=True)
                labels = data.labels[list(batch)].to(device)
                images = images.to(device, memory_format=torch.channels_last)
                last = position.step + 1 == len(sampler)
                with accelerator.autocast():
                    with own_random_numbers(seeds[mine.start], device):
                        features = model.encode(images)
                    # from here on, every process computes the same for the whole batch
                    features = gather_rows(features, [len(share) for share in own])
                    output = model.from_features(features, labels, return_graph=last)
                losses = {
                    "loss_plain": plain_criterion(at_least_float32(output.embeddings), labels)
                }
                loss = losses["loss_plain"]
                if output.context_embeddings is not None:
                    context = at_least_float32(output.context_embeddings)
                    losses["loss_graph"] = criterion(context, labels)
                    loss = config.alpha * loss + (1 - config.alpha) * losses["loss_graph"]
                losses["loss"] = loss
                optimizer.zero_grad(set_to_none=True)
                accelerator.backward(loss)
                average_gradients(p for group in optimizer.param_groups for p in group["params"])
                norm = accelerator.clip_grad_norm_(model.parameters(), config.grad_clip)
                # the one place in a step that waits for the device
                *found, norm = torch.stack([*losses.values(), norm.to(loss.dtype)]).tolist()
                values = dict(zip(losses, found, strict=True))
                if math.isfinite(values["loss"]) and math.isfinite(norm):
                    optimizer.step()
                    if config.class_neighbors:
                        seen = normalize(at_least_float32(output.features.detach()), dim=1)
                        classes.update(*(t[mine.start : mine.stop] for t in (seen, labels)))
                    for name, value in values.items():
                        position.sums[name] = position.sums.get(name, 0.0) + value
                else:
                    where = f"epoch {epoch + 1}, step {position.step + 1}"
                    said = describe_batch(where, values, norm, output.features, batch, data.paths)
                    if config.on_nonfinite == "stop":
                        raise FloatingPointError(said)
                    warnings.warn(f"Skipped a batch. {said}", stacklevel=3)
                    row["skipped_steps"] += 1
                schedule.step()
                if last:
                    row |= graph_statistics(output.graphs)
                position.step += 1
                progress.advance(1)
                interruption.check(device)

            good = len(sampler) - row.get("skipped_steps", 0)
            if good == 0:
                raise FloatingPointError(f"No loss of epoch {epoch + 1} was finite")
            row |= {name: value / good for name, value in position.sums.items()}
            for part, measured in look(view, splits, row["epoch"]).items():
                row |= {f"{part}_{e}_{m}": v for e, ms in measured.items() for m, v in ms.items()}
            row["seconds"] = time.perf_counter() - started
            history.append(row)
            position = Position(history)
            if accelerator.is_main_process:
                if chosen_epoch(history, config) == row["epoch"]:
                    models.save(model, folder, describe_model(config, info))
                write_history(folder / "metrics.csv", history)
            save()
            progress.epoch(row)
            interruption.check(device)
    except Interrupted:
        save()
        raise

    model.load_state_dict(load_file(folder / WEIGHTS_FILE))
    vectors = view.embed(splits.train)["head"]
    if accelerator.is_main_process:
        write_tensors(
            folder / "embeddings.safetensors",
            {"embeddings": vectors, "labels": splits.train.labels},
        )
    return TrainResult(
        metrics=view.measure(splits.test, splits.gallery),
        chosen_epoch=chosen_epoch(history, config),
        history=history,
        backbone=info,
        dimensions={"backbone": info.num_features, "head": config.head_dim},
        num_parameters=sum(p.numel() for p in model.parameters()),
        seconds=time.perf_counter() - started,
        peak_memory_mb=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    )


def look(view: View, splits: Splits, epoch: int) -> dict[str, dict[str, Metrics]]:
    """The metrics that are due after an epoch, by part of the data and embedding."""
    config = view.config
    due = config.test_every_epoch
    found = {}
    if config.protocol == "paper":
        due = epoch % config.eval_every == 0 or epoch == config.epochs
    elif splits.val is not None:
        found["val"] = view.measure(splits.val)
    if due:
        found["test"] = view.measure(splits.test, splits.gallery)
    return found


def freeze_batch_norm(module: nn.Module) -> None:
    """Normalise with the pretrained statistics; weights and biases go on learning.

    With per-class batches the batch's own statistics would give labels away and depend on what
    else is in the batch.
    """
    for child in module.modules():
        if isinstance(child, _BatchNorm):
            child.eval()


def check_classes(config: TrainConfig, splits: Splits) -> None:
    """Raise unless the training classes are enough for a batch."""
    classes = splits.train.num_classes
    most = classes * config.per_class
    if config.batch_size <= most:
        return
    held = 0 if splits.val is None else splits.val.num_classes
    of = f" ({held} of {classes + held} held out for validation)" if held else ""
    raise ValueError(
        f"Expected argument `batch_size` (--batch-size) to fit the data: {classes} training classes"
        f"{of} allow up to {most} with `per_class` {config.per_class}, got {config.batch_size}"
    )


def check_processes(config: TrainConfig, processes: int) -> None:
    """Raise unless a configuration can be trained by that many processes."""
    if config.batch_size < processes:
        raise ValueError(
            f"Expected argument `batch_size` to hold an image for each of {processes} processes, "
            f"got {config.batch_size}"
        )
    if processes > 1 and config.train_batch_norm:
        raise ValueError(
            "Expected argument `train_batch_norm` to be off with several processes: each would "
            "normalise by its own share of the batch"
        )


def estimate(statistics: ClassStatistics, view: View, data: ImageDataset) -> None:
    """Estimate the classes over the training set, as each process adds a share of its own."""
    own = slice(view.accelerator.process_index, None, view.accelerator.num_processes)
    device = view.accelerator.device
    vectors = view.embed(data)["head"]
    statistics.estimate(vectors[own].to(device), data.labels[own].to(device))


def describe_batch(
    where: str,
    losses: dict[str, float],
    gradient_norm: float,
    features: Tensor,
    batch: Sequence[int],
    paths: list[str],
) -> str:
    """What to know of a batch whose loss or gradient is not finite."""
    norms = features.detach().float().norm(dim=1)
    return (
        f"The loss or its gradient is not finite in {where}: {losses}; gradient norm "
        f"{gradient_norm:.3g}; feature norms from {float(norms.min()):.3g} to "
        f"{float(norms.max()):.3g}; samples {list(batch)}; images {[paths[i] for i in batch]}"
    )
