"""Train an encoder through its batch graph: one function that reads from top to bottom."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from bgl import models
from bgl._io import write_tensors
from bgl._memory import out_of_memory, peak_memory_mb
from bgl._precision import at_least_float32
from bgl.augment import AugmentedLoss, ClassStatistics
from bgl.datasets import Splits, recall_at
from bgl.images import ImageCache
from bgl.images.transforms import resized_side
from bgl.layers import FeatureMemory
from bgl.models import BackboneInfo, BatchGraphOutput, Encoder
from bgl.samplers import ClassPositions
from bgl.training.build import (
    build_augmentation,
    build_average,
    build_criterion,
    build_encoder,
    build_sampler,
    build_teachers,
    deterministic_algorithms,
    make_accelerator,
    make_optimizer,
    make_schedule,
)
from bgl.training.checkpoint import Checkpoint
from bgl.training.config import TrainConfig
from bgl.training.distributed import (
    broadcast_module,
    num_processes,
    process_index,
)
from bgl.training.evaluation import Evaluator, Metrics
from bgl.training.history import chosen_epoch
from bgl.training.interruption import Interruption
from bgl.training.progress import Progress, Vectors
from bgl.training.readout import Readout, add_readout, start_head
from bgl.training.step import Step
from bgl.training.trainer import Trainer


@dataclass
class TrainResult:
    """What a finished run has measured and taken."""

    metrics: dict[str, Metrics]  # test metrics by embedding, of the chosen epoch
    chosen_epoch: int
    history: list[dict[str, Any]]
    readout: Readout | None
    backbone: BackboneInfo
    dimensions: dict[str, int]  # by embedding
    num_parameters: int
    seconds: float
    peak_memory_mb: float
    peak_gpu_memory_mb: float | None  # as PyTorch allocated it; None on a CPU
    images_per_second: float | None  # of training; None if it was finished before
    waiting_for_data: float | None  # share of that time


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
    (``model.safetensors`` and ``model.json``, for :func:`bgl.models.load`) with its readout,
    ``embeddings.safetensors`` (the training set's, by that model) and, while it runs,
    ``checkpoint.pt``: a run that was interrupted resumes there when called again with the
    same configuration and folder, with the same result as if it had not been interrupted. The
    checkpoint is written after epochs, at most every ``config.checkpoint_minutes``, after the
    running step on SIGINT or SIGTERM, and when a loading process is lost.

    The model is trained in ``config.precision``; everything measured is embedded in float32.

    Where ``torch.distributed`` runs (``torchrun``), all processes call it together. They train as
    one: graph, losses and statistics are those of the whole batch. The first process alone reads
    and writes the folder.

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
    device = make_accelerator(config.device, config.deterministic).device
    check_processes(config, num_processes())
    check_classes(config, splits)
    data = splits.train
    encoder, info = build_encoder(config, device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    model = encoder.model
    criterion = build_criterion(config, data.num_classes).to(device)
    plan = build_augmentation(config, data.num_classes)
    teachers = build_teachers(config, data.num_classes, info.num_features).to(device)
    average = build_average(config, model, teachers)
    measured = encoder
    if average is not None and config.ema > 0:
        measured = Encoder(average.model, encoder.config, device)
    image_cache: ImageCache | None = None
    if config.cache is not None:
        image_cache = ImageCache(Path(config.cache), resized_side(config.image_size, config.resize))
    sampler = build_sampler(config, data.labels)
    optimizer = make_optimizer(config, model, criterion, teachers)
    schedule = make_schedule(config, optimizer, steps=config.epochs * len(sampler))
    memory = FeatureMemory(config.memory) if config.memory > 0 else None
    step = Step(config, model, optimizer, device, compute_losses, teachers, average, memory)

    parts: dict[str, Any] = {**step.parts, "criterion": criterion, "schedule": schedule}
    positions: ClassPositions | None = None
    classes: ClassStatistics | None = None
    if config.class_neighbors > 0 and isinstance(sampler, ClassPositions):
        positions = sampler
        classes = ClassStatistics(data.num_classes, info.num_features).to(device)
        parts |= {"sampler": positions, "classes": classes}
    if plan is not None:
        parts["augmentation"] = plan.augmentation.to(device)
        augmented = AugmentedLoss(criterion.loss, plan.augmentation, criterion.miner)
    trainer = Trainer(
        config,
        data if image_cache is None else data.with_cache(image_cache),
        data.labels,
        measured,
        sampler,
        step,
        schedule,
        Checkpoint(folder, config, splits.digest, parts, measured),
        choose_epoch=lambda history: chosen_epoch(history, config),
        should_continue=lambda history: len(history) < config.epochs,
        progress=progress,
        interruption=interruption,
        classes=classes,
    )
    broadcast_module(criterion)
    broadcast_module(teachers)
    validation: Vectors | None = None  # embeddings of its images by the chosen epoch
    k = recall_at(config.dataset)
    evaluator = Evaluator(
        measured, k, config.workers, progress=progress, interruption=interruption, cache=image_cache
    )
    embed = cache(partial(evaluator.embed, data))  # once for all who begin an epoch
    with trainer.running():
        while trainer.should_continue(trainer.history):
            epoch = len(trainer.history)
            if not trainer.position.row:  # else it was begun by the process that this one resumes
                if epoch == 0 and config.head_init == "readout":
                    start_head(model.head, embed()["backbone"], data.labels)
                    measured.model.head.load_state_dict(model.head.state_dict())
                    embed.cache_clear()
                if epoch > 0:
                    teachers.begin_epoch(embed)
                if epoch > 0 and positions is not None and classes is not None:
                    broadcast_module(classes)  # sums in another order would deal other batches
                    positions.set_positions(classes.mean)
                due = None if plan is None else plan.statistics_due(epoch, config.epochs)
                if due is not None:
                    estimate(due, embed()["head"], data.labels)
                embed.cache_clear()
                trainer.begin_epoch()
            plain_criterion: nn.Module = criterion
            if plan is not None and plan.active(epoch, config.epochs):
                plan.set_epoch(epoch + 1, config.epochs)
                plain_criterion = augmented
            model.train()
            if not config.train_batch_norm:
                freeze_batch_norm(model.backbone)
            trainer.train_epoch(plain_criterion, criterion)
            metrics, vectors = evaluate_epoch(evaluator, config, splits, epoch + 1)
            if trainer.end_epoch(metrics):
                validation = vectors
    trainer.load_chosen()
    tested, readout, dimensions = finish(config, evaluator, splits, folder, validation)
    return TrainResult(
        metrics=tested,
        chosen_epoch=chosen_epoch(trainer.history, config),
        history=trainer.history,
        readout=readout,
        backbone=info,
        dimensions=dimensions,
        num_parameters=sum(p.numel() for p in model.parameters()),
        seconds=trainer.checkpoint.seconds,
        peak_memory_mb=peak_memory_mb(),
        peak_gpu_memory_mb=torch.cuda.max_memory_allocated(device) / 2**20
        if device.type == "cuda"
        else None,
        images_per_second=trainer.throughput.images_per_second,
        waiting_for_data=trainer.throughput.waiting_for_data,
    )


def finish(
    config: TrainConfig,
    evaluator: Evaluator,
    splits: Splits,
    folder: Path,
    validation: Vectors | None = None,
) -> tuple[dict[str, Metrics], Readout | None, dict[str, int]]:
    """Fit the readout of the chosen epoch's model, store it, and measure the test classes.

    Its embeddings of the validation images are computed if they are not given.

    Returns:
        Metrics by embedding, how the readout was fitted, and dimensions by embedding.
    """
    vectors = evaluator.embed(splits.train)
    readout = add_readout(config, evaluator, splits, vectors["backbone"], validation)
    encoder = evaluator.encoder
    if encoder.model.readout is not None:
        vectors["readout"] = encoder.model.readout(vectors["backbone"].to(encoder.device)).cpu()
    if process_index() == 0:
        models.save(encoder.model, folder, encoder.config)
        write_tensors(
            folder / "embeddings.safetensors",
            {"embeddings": vectors[encoder.config.embedding], "labels": splits.train.labels},
        )
    metrics = evaluator.measure(splits.test, splits.gallery)
    return metrics, readout, {name: x.size(1) for name, x in vectors.items()}


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
) -> tuple[dict[str, float], Vectors | None]:
    """Measure what is due after an epoch.

    Returns:
        Columns ``PART_EMBEDDING_METRIC``, and embeddings of the validation images, if measured.
    """
    parts, vectors = {}, None
    test_is_due = config.test_every_epoch
    if config.protocol == "paper":
        test_is_due = epoch % config.eval_every == 0 or epoch == config.epochs
    elif splits.val is not None:
        vectors = evaluator.embed(splits.val)
        parts["val"] = evaluator.measure(splits.val, vectors=vectors)
    if test_is_due:
        parts["test"] = evaluator.measure(splits.test, splits.gallery)
    columns = {
        f"{part}_{embedding}_{metric}": value
        for part, measured in parts.items()
        for embedding, metrics in measured.items()
        for metric, value in metrics.items()
    }
    return columns, vectors


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


def estimate(statistics: ClassStatistics, vectors: Tensor, labels: Tensor) -> None:
    """Estimate the classes over the training set; each process adds a share of its own."""
    own, device = slice(process_index(), None, num_processes()), statistics.mean.device
    statistics.estimate(vectors[own].to(device), labels[own].to(device))
