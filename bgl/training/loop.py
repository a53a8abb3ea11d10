"""Training an encoder through its batch graph: one function that reads from top to bottom."""

from __future__ import annotations

import csv
import dataclasses
import io
import math
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import DataLoader
from torch_geometric.data import Data

from bgl._io import atomic_path, write_text
from bgl.datasets import ImageDataset, Splits, eval_transform, train_transform
from bgl.hyperbolic import HyperbolicDistance
from bgl.layers import DyBGRBlock
from bgl.losses import MinedLoss, create_loss, create_miner
from bgl.models import BackboneInfo, BatchGraphModel, create_backbone, make_head
from bgl.samplers import ClassBalancedSampler
from bgl.training.config import TrainConfig
from bgl.training.evaluation import RECALL_AT, Metrics, embed, evaluate


class Progress:
    """Where the loop reports to; this one keeps silent. The command line shows bars."""

    def start(self, what: str, total: int) -> None:
        """A new stage with ``total`` items begins."""

    def advance(self, amount: int) -> None:
        """``amount`` items are done."""

    def epoch(self, row: dict[str, Any]) -> None:
        """An epoch has ended; ``row`` is its line of metrics.csv."""


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


def make_accelerator(device: str) -> Accelerator:
    """Device and precision: bf16 autocast on CUDA, float32 on the CPU.

    Raises:
        ValueError: If CUDA is asked for and there is none.
    """
    cuda = torch.cuda.is_available()
    if device == "cuda" and not cuda:
        raise ValueError("Expected argument `device` to be available, but CUDA is not, got 'cuda'")
    use_cuda = cuda and device != "cpu"
    return Accelerator(cpu=not use_cuda, mixed_precision="bf16" if use_cuda else "no")


def build_model(config: TrainConfig) -> tuple[BatchGraphModel, BackboneInfo]:
    """The model a configuration describes, with its pretrained weights."""
    backbone, info = create_backbone(config.backbone, config.weights)
    channels = info.num_features
    makers: dict[str, Callable[[], nn.Module]] = {
        "dybgr": lambda: DyBGRBlock(channels, **dataclasses.asdict(config.dybgr)),
    }
    blocks = [makers[name]() for name in config.block_names]
    hyperbolic = config.distance == "hyperbolic"
    head = make_head(
        channels, config.head_dim, config.curvature if hyperbolic else None, config.clip_radius
    )
    model = BatchGraphModel(backbone, blocks, head)
    return model.to(memory_format=torch.channels_last), info


def build_criterion(config: TrainConfig, num_classes: int) -> nn.Module:
    """The loss a configuration describes, with its miner."""
    loss = create_loss(
        config.loss, num_classes, config.head_dim, head_distance(config), **config.loss_options
    )
    return MinedLoss(loss, create_miner(config.miner, config.loss, **config.miner_options))


def head_distance(config: TrainConfig) -> Any:
    """The distance of the head's embeddings, as :func:`bgl.metrics.retrieval_metrics` takes it."""
    return HyperbolicDistance(config.curvature) if config.distance == "hyperbolic" else "cosine"


def train(
    config: TrainConfig,
    splits: Splits,
    folder: str | Path,
    progress: Progress | None = None,
) -> TrainResult:
    """Train, choose the epoch on validation classes, and measure the test classes once.

    The folder receives ``metrics.csv`` (a line per epoch), ``model.safetensors`` (the chosen
    epoch) and, while the training runs, ``checkpoint.pt``: a training that was interrupted goes
    on from its last epoch when called again with the same configuration and folder, with the
    same result as if it had not been interrupted.

    Args:
        config: What to train.
        splits: The data; its transforms are set here.
        folder: Where files go; made if needed.
        progress: Told about stages, items and epochs.

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

    model, info = build_model(config)
    criterion = build_criterion(config, splits.train.num_classes)
    data = splits.train.with_transform(
        train_transform(config.image_size, info.mean, info.std, (config.crop_scale, 1.0))
    )
    sampler = ClassBalancedSampler(data.labels, config.batch_size, config.per_class, config.seed)
    workers = num_workers(config, data)
    loader = DataLoader(
        data,
        batch_sampler=sampler,
        num_workers=workers,
        pin_memory=accelerator.device.type == "cuda",
    )
    model.to(accelerator.device)
    criterion.to(accelerator.device)
    optimizer = make_optimizer(config, model, criterion)
    schedule = make_schedule(config, optimizer, steps=config.epochs * len(sampler))

    history: list[dict[str, Any]] = []
    checkpoint = folder / "checkpoint.pt"
    parts = {"model": model, "criterion": criterion, "optimizer": optimizer, "schedule": schedule}
    if checkpoint.exists():
        history = load_checkpoint(checkpoint, config, parts)
    elapsed = history[-1]["seconds"] if history else 0.0

    for epoch in range(len(history), config.epochs):
        model.train()
        if not config.train_batch_norm:
            freeze_batch_norm(model.backbone)
        sampler.set_epoch(epoch)
        progress.start(f"epoch {epoch + 1}/{config.epochs}", len(sampler))
        sums: dict[str, float] = {}
        graph = None
        for step, (images, labels) in enumerate(loader):
            images = images.to(accelerator.device, memory_format=torch.channels_last)
            labels = labels.to(accelerator.device)
            last = step + 1 == len(sampler)
            with accelerator.autocast():
                output = model(images, labels, return_graph=last)
            losses = {"loss_plain": criterion(output.embeddings.float(), labels)}
            loss = losses["loss_plain"]
            if output.context_embeddings is not None:
                losses["loss_graph"] = criterion(output.context_embeddings.float(), labels)
                loss = config.alpha * loss + (1 - config.alpha) * losses["loss_graph"]
            losses["loss"] = loss
            values = {name: float(value.detach()) for name, value in losses.items()}
            if not math.isfinite(values["loss"]):
                raise FloatingPointError(non_finite_report(values, epoch, step, labels, output))
            optimizer.zero_grad(set_to_none=True)
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(model.parameters(), config.grad_clip)
            optimizer.step()
            schedule.step()
            sums = {name: sums.get(name, 0.0) + value for name, value in values.items()}
            graph = output.graph
            progress.advance(1)

        row: dict[str, Any] = {"epoch": epoch + 1, "lr": schedule.get_last_lr()[0]}
        row |= {name: value / len(sampler) for name, value in sums.items()}
        if graph is not None:
            row |= graph_statistics(graph)
        if splits.val is not None:
            measured = measure(model, config, info, splits.val, None, accelerator, progress)
            row |= {f"val_{e}_{m}": v for e, ms in measured.items() for m, v in ms.items()}
        row["seconds"] = elapsed + time.perf_counter() - started
        history.append(row)
        if chosen_epoch(history, config) == row["epoch"]:
            with atomic_path(folder / "model.safetensors") as temporary:
                save_file(contiguous(model.state_dict()), temporary)
        save_checkpoint(checkpoint, config, parts, history)
        write_history(folder / "metrics.csv", history)
        progress.epoch(row)

    model.load_state_dict(load_file(folder / "model.safetensors"))
    metrics = measure(model, config, info, splits.test, splits.gallery, accelerator, progress)
    return TrainResult(
        metrics=metrics,
        chosen_epoch=chosen_epoch(history, config),
        history=history,
        backbone=info,
        dimensions={"backbone": info.num_features, "head": config.head_dim},
        num_parameters=sum(p.numel() for p in model.parameters()),
        seconds=elapsed + time.perf_counter() - started,
        peak_memory_mb=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    )


def measure(
    model: nn.Module,
    config: TrainConfig,
    info: BackboneInfo,
    queries: ImageDataset,
    gallery: ImageDataset | None,
    accelerator: Accelerator,
    progress: Progress,
) -> dict[str, Metrics]:
    """Embed queries (and gallery) with the evaluation transform and measure retrieval."""
    transform = eval_transform(config.image_size, info.mean, info.std)

    def vectors(dataset: ImageDataset) -> dict[str, Tensor]:
        progress.start(f"embedding {len(dataset)} images", len(dataset))
        with accelerator.autocast():
            return embed(
                model,
                dataset.with_transform(transform),
                accelerator.device,
                workers=num_workers(config, dataset),
                on_batch=progress.advance,
            )

    return evaluate(
        vectors(queries),
        queries.labels,
        RECALL_AT,
        head_distance(config),
        None if gallery is None else vectors(gallery),
        None if gallery is None else gallery.labels,
    )


def num_workers(config: TrainConfig, dataset: ImageDataset) -> int:
    """Loading processes: as configured; by default none for images in memory."""
    if config.workers >= 0:
        return config.workers
    return 0 if isinstance(dataset.images, Tensor) else torch.get_num_threads()


def freeze_batch_norm(module: nn.Module) -> None:
    """Normalise with the pretrained statistics; weights and biases go on learning.

    With per-class batches the batch's own statistics would give labels away and depend on what
    else is in the batch.
    """
    for child in module.modules():
        if isinstance(child, _BatchNorm):
            child.eval()


def make_optimizer(
    config: TrainConfig, model: BatchGraphModel, criterion: nn.Module
) -> torch.optim.Optimizer:
    """AdamW with a rate for the encoder, one for head and loss, one for the blocks."""
    head_rate = config.lr * config.lr_head
    groups = [
        {"params": list(model.backbone.parameters()), "lr": config.lr},
        {"params": [*model.head.parameters(), *criterion.parameters()], "lr": head_rate},
        {"params": list(model.blocks.parameters()), "lr": config.lr_blocks},
    ]
    return torch.optim.AdamW([g for g in groups if g["params"]], weight_decay=config.weight_decay)


def make_schedule(
    config: TrainConfig, optimizer: torch.optim.Optimizer, steps: int
) -> torch.optim.lr_scheduler.LRScheduler:
    """Linear warm-up over the first ``config.warmup`` of the steps, then linear decay to 0."""
    warmup = max(1, round(config.warmup * steps))

    def factor(step: int) -> float:
        return min((step + 1) / warmup, max(0.0, (steps - step) / max(1, steps - warmup)))

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def graph_statistics(graph: Data) -> dict[str, float]:
    """Share of the edges, and of the edge weight, between samples of the same class."""
    same = (graph.y[graph.edge_index[0]] == graph.y[graph.edge_index[1]]).float()
    weight = graph.edge_weight.detach().float()
    if weight.dim() == 2:  # heads
        weight = weight.mean(1)
    return {
        "same_class_edges": float(same.mean()),
        "same_class_weight": float((same * weight).sum() / weight.sum().clamp(min=1e-12)),
    }


def chosen_epoch(history: list[dict[str, Any]], config: TrainConfig) -> int:
    """The epoch with the best validation MAP@R (the first of equals); without validation
    classes the last."""
    key = f"val_{config.select_embedding}_map@r"
    if key not in history[-1]:
        return int(history[-1]["epoch"])
    return int(max(history, key=lambda row: row[key])["epoch"])


def non_finite_report(
    values: dict[str, float], epoch: int, step: int, labels: Tensor, output: Any
) -> str:
    """Names the batch whose loss is not finite."""
    norms = output.features.detach().float().norm(dim=1)
    return (
        f"The loss is not finite in epoch {epoch + 1}, step {step + 1}: {values}; "
        f"labels {labels.tolist()}; feature norms from {float(norms.min()):.3g} "
        f"to {float(norms.max()):.3g}"
    )


def contiguous(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state dict in the plain memory layout that safetensors stores."""
    return {name: tensor.contiguous() for name, tensor in state.items()}


def save_checkpoint(
    path: Path, config: TrainConfig, parts: dict[str, Any], history: list[dict[str, Any]]
) -> None:
    """Everything a training needs to go on bit by bit."""
    state = {
        "config": dataclasses.asdict(config),
        "history": history,
        "parts": {name: part.state_dict() for name, part in parts.items()},
        "random": torch.get_rng_state(),  # the only generator that training draws from
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }
    with atomic_path(path) as temporary:
        torch.save(state, temporary)


def load_checkpoint(path: Path, config: TrainConfig, parts: dict[str, Any]) -> list[dict[str, Any]]:
    """Restore a checkpoint; returns the history so far.

    Raises:
        ValueError: If it belongs to another configuration.
    """
    state = torch.load(path, map_location="cpu", weights_only=True)
    now = dataclasses.asdict(config)
    changed = sorted(key for key in now if state["config"].get(key) != now[key])
    if changed:
        raise ValueError(
            f"Expected {path} to belong to this configuration, but {', '.join(changed)} differ; "
            "use another --output-dir"
        )
    for name, part in parts.items():
        part.load_state_dict(state["parts"][name])
    torch.set_rng_state(state["random"])
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])
    history: list[dict[str, Any]] = state["history"]
    return history


def write_history(path: Path, history: list[dict[str, Any]]) -> None:
    """metrics.csv, a line per epoch."""
    text = io.StringIO()
    columns = list(dict.fromkeys(name for row in history for name in row))
    writer = csv.DictWriter(text, columns)
    writer.writeheader()
    writer.writerows(history)
    write_text(path, text.getvalue())
