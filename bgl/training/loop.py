"""Train an encoder through its batch graph: one function that reads from top to bottom."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import normalize
from torch.nn.modules.batchnorm import _BatchNorm

from bgl import models
from bgl._io import remove_leftovers, write_tensors
from bgl._memory import out_of_memory, peak_memory_mb
from bgl._precision import at_least_float32
from bgl.augment import AugmentedLoss, ClassStatistics
from bgl.datasets import ImageDataset, Splits
from bgl.images import train_transform
from bgl.images.cache import ImageCache
from bgl.images.loading import ImageLoader, num_workers
from bgl.images.transforms import resized_side
from bgl.models import BackboneInfo, BatchGraphOutput
from bgl.models.files import WEIGHTS_FILE
from bgl.samplers import ClassPositions
from bgl.training.build import (
    build_augmentation,
    build_criterion,
    build_encoder,
    build_sampler,
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
from bgl.training.distributed import (
    average_gradients,
    broadcast_module,
    fork_rng,
    gather_rows,
    num_processes,
    process_index,
    shares,
)
from bgl.training.evaluation import Evaluator, Metrics, recall_at
from bgl.training.history import chosen_epoch, graph_statistics, write_history
from bgl.training.interruption import Interrupted, Interruption
from bgl.training.loading import SeededCrops, seeded_batches, training_images
from bgl.training.progress import Progress, TrainingRun


@dataclass
class TrainResult:
    """What a finished run has measured and taken."""

    metrics: dict[str, Metrics]  # test metrics by embedding, of the chosen epoch
    chosen_epoch: int
    history: list[dict[str, Any]]
    backbone: BackboneInfo
    dimensions: dict[str, int]  # by embedding
    num_parameters: int
    seconds: float
    peak_memory_mb: float
    peak_gpu_memory_mb: float | None  # as PyTorch allocated it; None on a CPU


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
    ``embeddings.safetensors`` (the training set's, by that model) and, while it runs,
    ``checkpoint.pt``: a run that was interrupted resumes there when called again with the
    same configuration and folder, with the same result as if it had not been interrupted. The
    checkpoint is written after every epoch, after the running step on SIGINT or SIGTERM, and
    when a loading process is lost.

    On a GPU the model is trained in bf16 autocast; everything measured is embedded in float32.

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
        ChildProcessError: If a process that loads images was lost.
        MemoryError: If memory runs out; the last checkpoint is kept.
        OSError: If a file cannot be written; the checkpoint before it is left as it was.
    """
    with (
        deterministic_algorithms(config.deterministic),
        out_of_memory(
            "use a smaller --batch-size, or --checkpoint-activations; the last checkpoint is kept"
        ),
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
    accelerator = make_accelerator(config.device)
    device = accelerator.device
    check_processes(config, accelerator.num_processes)
    check_classes(config, splits)
    if accelerator.is_main_process:
        folder.mkdir(parents=True, exist_ok=True)
        remove_leftovers(folder)

    encoder, info = build_encoder(config, device)
    model = encoder.model
    criterion = build_criterion(config, splits.train.num_classes).to(device)
    plan = build_augmentation(config, splits.train.num_classes)
    if config.cache is not None:
        side = resized_side(config.image_size, config.resize)
        splits = splits.with_cache(ImageCache(Path(config.cache), side))
    data = splits.train
    own = shares(config.batch_size, num_processes())
    mine = own[process_index()]
    transform = train_transform(config.image_size, info.mean, info.std, (config.crop_scale, 1.0))
    in_memory = isinstance(data.images, Tensor)  # which a GPU outruns all the same
    loader = ImageLoader(
        SeededCrops(data, transform.crop),
        image_size=config.image_size,
        batch_size=len(mine),
        workers=num_workers(config.workers, in_memory and device.type == "cpu"),
    )
    sampler = build_sampler(config, data.labels)
    optimizer = make_optimizer(config, model, criterion)
    schedule = make_schedule(config, optimizer, steps=config.epochs * len(sampler))

    parts = {"model": model, "criterion": criterion, "optimizer": optimizer, "schedule": schedule}
    positions = None
    if config.class_neighbors > 0 and isinstance(sampler, ClassPositions):
        positions = sampler
        classes = ClassStatistics(splits.train.num_classes, info.num_features).to(device)
        parts |= {"sampler": positions, "classes": classes}
    if plan is not None:
        parts["augmentation"] = plan.augmentation.to(device)
        augmented = AugmentedLoss(criterion.loss, plan.augmentation, criterion.miner)
    position = Position()
    digest = splits.digest
    checkpoint = folder / CHECKPOINT_FILE
    resumed = checkpoint.exists()
    if resumed:
        position = load_checkpoint(checkpoint, config, digest, parts)
    broadcast_module(criterion)
    started = time.perf_counter() - position.seconds
    history = position.history

    def save() -> None:
        position.seconds = time.perf_counter() - started
        if accelerator.is_main_process:
            save_checkpoint(checkpoint, config, digest, parts, position)

    k = recall_at(config.dataset)
    evaluator = Evaluator(encoder, k, config.workers, progress=progress, interruption=interruption)
    progress.begin(TrainingRun(config, encoder, resumed), len(history))
    try:
        for epoch in range(len(history), config.epochs):
            plain_criterion: nn.Module = criterion
            if plan is not None and plan.active(epoch, config.epochs):
                due = plan.statistics_due(epoch, config.epochs)
                if due is not None and position.step == 0:
                    estimate(due, evaluator, splits.train)
                plan.set_epoch(epoch + 1, config.epochs)
                plain_criterion = augmented

            model.train()
            if not config.train_batch_norm:
                freeze_batch_norm(model.backbone)
            if positions is not None and position.step == 0 and epoch > 0:
                positions.set_positions(classes.mean)
            batches = seeded_batches(sampler, config.seed, epoch)
            if position.step == 0:
                position.row = {"epoch": epoch + 1, "lr": schedule.get_last_lr()[0]}
                if config.on_nonfinite == "skip":
                    position.row["skipped_steps"] = 0
            row = position.row
            progress.start(f"epoch {epoch + 1}/{config.epochs}", len(sampler))
            progress.advance(position.step)
            shared = [batch[mine.start : mine.stop] for batch in batches[position.step :]]
            for images in training_images(loader, shared, encoder):
                batch, seeds = zip(*batches[position.step], strict=True)
                labels = data.labels[list(batch)].to(device)
                last = position.step + 1 == len(sampler)
                with accelerator.autocast():
                    with fork_rng(seeds[mine.start], device):
                        features = model.encode(images)
                    # from here on, every process computes the same for the whole batch
                    features = gather_rows(features, [len(share) for share in own])
                    output = model.from_features(features, labels, return_graph=last)
                losses = compute_losses(output, labels, plain_criterion, criterion, config.alpha)
                optimizer.zero_grad(set_to_none=True)
                accelerator.backward(losses["loss"])
                average_gradients(p for group in optimizer.param_groups for p in group["params"])
                norm = accelerator.clip_grad_norm_(model.parameters(), config.grad_clip)
                # the one place in a step that waits for the device
                *found, norm = torch.stack(
                    [*losses.values(), norm.to(losses["loss"].dtype)]
                ).tolist()
                values = dict(zip(losses, found, strict=True))
                if math.isfinite(values["loss"]) and math.isfinite(norm):
                    optimizer.step()
                    if positions is not None:
                        rows = slice(mine.start, mine.stop)
                        unit = normalize(at_least_float32(output.features.detach()[rows]), dim=1)
                        classes.update(unit, labels[rows])
                    for name, value in values.items():
                        position.sums[name] = position.sums.get(name, 0.0) + value
                else:
                    where = f"epoch {epoch + 1}, step {position.step + 1}"
                    description = describe_batch(
                        where, values, norm, output.features, batch, data.paths
                    )
                    if config.on_nonfinite == "stop":
                        raise FloatingPointError(description)
                    warnings.warn(f"Skipped a batch. {description}", stacklevel=3)
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
            row |= evaluate_epoch(evaluator, config, splits, row["epoch"])
            row["seconds"] = time.perf_counter() - started
            history.append(row)
            position = Position(history)
            if accelerator.is_main_process:
                if chosen_epoch(history, config) == row["epoch"]:
                    models.save(model, folder, encoder.config)
                write_history(folder / "metrics.csv", history)
            save()
            accelerator.wait_for_everyone()  # no process continues before it is written
            progress.epoch(row)
            interruption.check(device)
    except Interrupted:
        save()
        accelerator.wait_for_everyone()
        raise
    except ChildProcessError as error:  # while this process waited for images, between two steps
        save()
        if interruption.received:  # whoever stops this run may have ended that process as well
            raise Interrupted(interruption.received) from error
        raise
    finally:
        loader.close()

    model.load_state_dict(load_file(folder / WEIGHTS_FILE))
    vectors = evaluator.embed(splits.train)["head"]
    if accelerator.is_main_process:
        write_tensors(
            folder / "embeddings.safetensors",
            {"embeddings": vectors, "labels": splits.train.labels},
        )
    return TrainResult(
        metrics=evaluator.measure(splits.test, splits.gallery),
        chosen_epoch=chosen_epoch(history, config),
        history=history,
        backbone=info,
        dimensions={"backbone": info.num_features, "head": config.head_dim},
        num_parameters=sum(p.numel() for p in model.parameters()),
        seconds=time.perf_counter() - started,
        peak_memory_mb=peak_memory_mb(),
        peak_gpu_memory_mb=torch.cuda.max_memory_allocated(device) / 2**20
        if device.type == "cuda"
        else None,
    )


def compute_losses(
    output: BatchGraphOutput,
    labels: Tensor,
    plain_criterion: nn.Module,
    criterion: nn.Module,
    alpha: float,
) -> dict[str, Tensor]:
    """Compute the losses of a batch by name; "loss" is the one to minimise.

    With contextual embeddings it is alpha * loss_plain + (1 - alpha) * loss_graph.
    """
    plain = plain_criterion(at_least_float32(output.embeddings), labels)
    if output.context_embeddings is None:
        return {"loss_plain": plain, "loss": plain}
    graph = criterion(at_least_float32(output.context_embeddings), labels)
    return {
        "loss_plain": plain,
        "loss_graph": graph,
        "loss": alpha * plain + (1 - alpha) * graph,
    }


def evaluate_epoch(
    evaluator: Evaluator, config: TrainConfig, splits: Splits, epoch: int
) -> dict[str, float]:
    """Measure what is due after an epoch, as columns ``PART_EMBEDDING_METRIC``."""
    parts = {}
    test_is_due = config.test_every_epoch
    if config.protocol == "paper":
        test_is_due = epoch % config.eval_every == 0 or epoch == config.epochs
    elif splits.val is not None:
        parts["val"] = evaluator.measure(splits.val)
    if test_is_due:
        parts["test"] = evaluator.measure(splits.test, splits.gallery)
    return {
        f"{part}_{embedding}_{metric}": value
        for part, measured in parts.items()
        for embedding, metrics in measured.items()
        for metric, value in metrics.items()
    }


def freeze_batch_norm(module: nn.Module) -> None:
    """Normalise with the pretrained statistics; weights and biases keep learning.

    With per-class batches the batch's own statistics would give labels away and depend on what
    else is in the batch.
    """
    for child in module.modules():
        if isinstance(child, _BatchNorm):
            child.eval()


def check_classes(config: TrainConfig, splits: Splits) -> None:
    """Raise unless there are enough training classes for a batch."""
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


def estimate(statistics: ClassStatistics, evaluator: Evaluator, data: ImageDataset) -> None:
    """Estimate the classes over the training set; each process adds a share of its own."""
    own = slice(process_index(), None, num_processes())
    device = evaluator.encoder.device
    vectors = evaluator.embed(data)["head"]
    statistics.estimate(vectors[own].to(device), data.labels[own].to(device))


def describe_batch(
    where: str,
    losses: dict[str, float],
    gradient_norm: float,
    features: Tensor,
    batch: Sequence[int],
    paths: list[str],
) -> str:
    """Describe a batch whose loss or gradient is not finite."""
    norms = features.detach().float().norm(dim=1)
    return (
        f"The loss or its gradient is not finite in {where}: {losses}; gradient norm "
        f"{gradient_norm:.3g}; feature norms from {float(norms.min()):.3g} to "
        f"{float(norms.max()):.3g}; samples {list(batch)}; images {[paths[i] for i in batch]}"
    )
