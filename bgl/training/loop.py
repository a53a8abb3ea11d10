"""Training an encoder through its batch graph: one function that reads from top to bottom."""

from __future__ import annotations

import csv
import io
import math
import resource
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import DataLoader
from torch_geometric.data import Data

from bgl import models
from bgl._io import write_tensors, write_text
from bgl.augment import AugmentedLoss
from bgl.datasets import ImageDataset, Splits, eval_transform, train_transform
from bgl.models import BackboneInfo
from bgl.samplers import ClassBalancedSampler
from bgl.training.build import (
    build_augmentation,
    build_criterion,
    build_model,
    describe_model,
    head_distance,
    make_accelerator,
    make_optimizer,
    make_schedule,
)
from bgl.training.checkpoint import load_checkpoint, save_checkpoint
from bgl.training.config import TrainConfig
from bgl.training.evaluation import Metrics, embed, evaluate, recall_at
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
    ``checkpoint.pt``: a training that was interrupted goes on from its last epoch when called
    again with the same configuration and folder, with the same result as if it had not been
    interrupted.

    Args:
        config: What to train.
        splits: The data; its transforms are set here.
        folder: Where files go; made if needed.
        progress: Told about stages, items, measurements and epochs.

    Raises:
        ValueError: If configuration and data do not fit.
        FloatingPointError: If the loss of a batch is not finite; the message names the batch.
    """
    started = time.perf_counter()
    progress = progress or Progress()
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    set_seed(config.seed)
    accelerator = make_accelerator(config.device)
    device = accelerator.device

    model, info = build_model(config)
    criterion = build_criterion(config, splits.train.num_classes)
    augmentation = build_augmentation(config, splits.train.num_classes)
    data = splits.train.with_transform(
        train_transform(config.image_size, info.mean, info.std, (config.crop_scale, 1.0))
    )
    sampler = ClassBalancedSampler(
        data.labels, config.batch_size, config.per_class, config.seed, config.batches_per_epoch
    )
    loader = DataLoader(
        data,
        batch_sampler=sampler,
        num_workers=num_workers(config, data),
        pin_memory=device.type == "cuda",
    )
    optimizer = make_optimizer(config, model.to(device), criterion.to(device))
    schedule = make_schedule(config, optimizer, steps=config.epochs * len(sampler))
    view = View(model, config, info, accelerator, progress)

    parts = {"model": model, "criterion": criterion, "optimizer": optimizer, "schedule": schedule}
    if augmentation is not None:
        parts["augmentation"] = augmentation.to(device)
        augmented = AugmentedLoss(criterion.loss, augmentation, criterion.miner)
    history: list[dict[str, Any]] = []
    checkpoint = folder / "checkpoint.pt"
    if checkpoint.exists():
        history = load_checkpoint(checkpoint, config, parts)
    elapsed = history[-1]["seconds"] if history else 0.0

    progress.begin(view, len(history))
    for epoch in range(len(history), config.epochs):
        row: dict[str, Any] = {"epoch": epoch + 1, "lr": schedule.get_last_lr()[0]}
        plain_criterion: nn.Module = criterion
        if augmentation is not None and epoch >= (first := round(config.iaa.start * config.epochs)):
            if (epoch - first) % config.iaa.update_every == 0:
                augmentation.statistics.estimate(
                    view.embed(splits.train)["head"].to(device), splits.train.labels.to(device)
                )
            augmentation.set_epoch(epoch + 1, config.epochs)
            plain_criterion = augmented

        model.train()
        if not config.train_batch_norm:
            freeze_batch_norm(model.backbone)
        sampler.set_epoch(epoch)
        progress.start(f"epoch {epoch + 1}/{config.epochs}", len(sampler))
        sums: dict[str, float] = {}
        for step, (images, labels) in enumerate(loader):
            images = images.to(device, memory_format=torch.channels_last)
            labels = labels.to(device)
            with accelerator.autocast():
                output = model(images, labels, return_graph=step + 1 == len(sampler))
            losses = {"loss_plain": plain_criterion(output.embeddings.float(), labels)}
            loss = losses["loss_plain"]
            if output.context_embeddings is not None:
                losses["loss_graph"] = criterion(output.context_embeddings.float(), labels)
                loss = config.alpha * loss + (1 - config.alpha) * losses["loss_graph"]
            losses["loss"] = loss
            # the one place in a step that waits for the device
            values = dict(zip(losses, torch.stack(list(losses.values())).tolist(), strict=True))
            if not math.isfinite(values["loss"]):
                norms = output.features.detach().float().norm(dim=1)
                raise FloatingPointError(
                    f"The loss is not finite in epoch {epoch + 1}, step {step + 1}: {values}; "
                    f"feature norms from {float(norms.min()):.3g} to {float(norms.max()):.3g}; "
                    f"images {[data.paths[i] for i in list(sampler)[step]]}"
                )
            optimizer.zero_grad(set_to_none=True)
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(model.parameters(), config.grad_clip)
            optimizer.step()
            schedule.step()
            sums = {name: sums.get(name, 0.0) + value for name, value in values.items()}
            progress.advance(1)

        row |= {name: value / len(sampler) for name, value in sums.items()}
        row |= graph_statistics(output.graphs)
        measured, part = {}, "val"
        if config.protocol == "paper":
            part = "test"
            if row["epoch"] % config.eval_every == 0 or row["epoch"] == config.epochs:
                measured = view.measure(splits.test, splits.gallery)
        elif splits.val is not None:
            measured = view.measure(splits.val)
        row |= {f"{part}_{e}_{m}": v for e, ms in measured.items() for m, v in ms.items()}
        row["seconds"] = elapsed + time.perf_counter() - started
        history.append(row)
        if chosen_epoch(history, config) == row["epoch"]:
            models.save(model, folder, describe_model(config, info))
        save_checkpoint(checkpoint, config, parts, history)
        write_history(folder / "metrics.csv", history)
        progress.epoch(row)

    model.load_state_dict(load_file(folder / "model.safetensors"))
    embeddings = {"embeddings": view.embed(splits.train)["head"], "labels": splits.train.labels}
    write_tensors(folder / "embeddings.safetensors", embeddings)
    return TrainResult(
        metrics=view.measure(splits.test, splits.gallery),
        chosen_epoch=chosen_epoch(history, config),
        history=history,
        backbone=info,
        dimensions={"backbone": info.num_features, "head": config.head_dim},
        num_parameters=sum(p.numel() for p in model.parameters()),
        seconds=elapsed + time.perf_counter() - started,
        peak_memory_mb=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    )


@dataclass
class View:
    """A model with all it takes to look at a dataset through it, in evaluation mode."""

    model: nn.Module
    config: TrainConfig
    info: BackboneInfo
    accelerator: Accelerator
    progress: Progress

    def embed(self, dataset: ImageDataset) -> dict[str, Tensor]:
        """Backbone and head output of every image, with the evaluation transform."""
        self.progress.start(f"embedding {len(dataset)} images", len(dataset))
        config, info = self.config, self.info
        transform = eval_transform(config.image_size, info.mean, info.std, config.resize)
        with self.accelerator.autocast():
            return embed(
                self.model,
                dataset.with_transform(transform),
                self.accelerator.device,
                workers=num_workers(self.config, dataset),
                on_batch=self.progress.advance,
            )

    def measure(
        self, queries: ImageDataset, gallery: ImageDataset | None = None
    ) -> dict[str, Metrics]:
        """Retrieval metrics of each embedding."""
        vectors = self.embed(queries)
        others = None if gallery is None else self.embed(gallery)
        self.progress.measured(queries, vectors, others)
        return evaluate(
            vectors,
            queries.labels,
            recall_at(self.config.dataset),
            head_distance(self.config),
            others,
            None if gallery is None else gallery.labels,
        )


def num_workers(config: TrainConfig, dataset: ImageDataset) -> int:
    """Loading processes: as configured; by default none for images in memory."""
    if config.workers >= 0:
        return config.workers
    return 0 if isinstance(dataset.images, Tensor) else torch.get_num_threads()


def graph_statistics(graphs: list[Data]) -> dict[str, float]:
    """Share of the edges, and of the edge weight, between samples of the same class; incoming
    edges of a node; entropy of their weights in nats. The mean over the graphs of all blocks and
    iterations."""
    if not graphs:
        return {}
    rows = []
    for graph in graphs:
        source, target = graph.edge_index
        same = (graph.y[source] == graph.y[target]).float()
        weight = graph.edge_weight.detach().float().reshape(len(same), -1).mean(1)  # over heads
        total = weight.new_zeros(len(graph.y)).index_add_(0, target, weight)
        share = weight / total.clamp_min(1e-12)[target]
        rows.append(
            torch.stack(
                [
                    same.mean(),
                    (same * weight).sum() / weight.sum(),
                    same.new_tensor(len(same) / len(graph.y)),
                    -torch.special.xlogy(share, share).sum() / len(graph.y),
                ]
            )
        )
    names = ("same_class_edges", "same_class_weight", "mean_degree", "weight_entropy")
    return dict(zip(names, torch.stack(rows).mean(0).tolist(), strict=True))


def chosen_epoch(history: list[dict[str, Any]], config: TrainConfig) -> int:
    """The epoch with the best validation MAP@R, with protocol "paper" with the best test
    Recall@1 (the first of equals); where nothing was measured, the last."""
    part, metric = ("test", "recall@1") if config.protocol == "paper" else ("val", "map@r")
    key = f"{part}_{config.select_embedding}_{metric}"
    measured = [row for row in history if key in row]
    if not measured:
        return int(history[-1]["epoch"])
    return int(max(measured, key=lambda row: row[key])["epoch"])


def write_history(path: Path, history: list[dict[str, Any]]) -> None:
    """metrics.csv, a line per epoch."""
    text = io.StringIO()
    columns = list(dict.fromkeys(name for row in history for name in row))
    writer = csv.DictWriter(text, columns)
    writer.writeheader()
    writer.writerows(history)
    write_text(path, text.getvalue())


def freeze_batch_norm(module: nn.Module) -> None:
    """Normalise with the pretrained statistics; weights and biases go on learning.

    With per-class batches the batch's own statistics would give labels away and depend on what
    else is in the batch.
    """
    for child in module.modules():
        if isinstance(child, _BatchNorm):
            child.eval()
