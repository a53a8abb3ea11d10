"""Build model, loss, augmentation and optimiser from a configuration."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import InitProcessGroupKwargs, set_seed
from timm.optim import param_groups_layer_decay
from torch import Tensor, nn

from bgl.augment import AUGMENTATIONS, AugmentationPlan
from bgl.hyperbolic import HyperbolicDistance
from bgl.losses import MinedLoss, create_loss, create_miner
from bgl.models import (
    BackboneInfo,
    BatchGraphModel,
    BlockConfig,
    Encoder,
    ModelConfig,
    assemble_model,
    create_backbone,
)
from bgl.models.weights import read_state_dict
from bgl.samplers import SAMPLERS, BatchSampler
from bgl.training.average import WeightAverage
from bgl.training.config import TrainConfig
from bgl.training.distributed import broadcast_module
from bgl.training.teachers import TEACHERS, Teachers

# How long a process waits for another. The first one works alone at times: it measures, refines
# and writes.
PATIENCE = timedelta(hours=2)
CUBLAS_WORKSPACE = ":4096:8"  # the larger of the two with which cuBLAS repeats its bits
# What accelerate may be configured for: here the gradients of whole models are averaged.
SHARDING = {
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "a parallelism configuration",
}


def make_accelerator(device: str, deterministic: bool = False) -> Accelerator:
    """Connect the processes that train together, and choose the device of this one.

    It comes before anything else that could start CUDA.

    Raises:
        ValueError: If CUDA is asked for and there is none, or accelerate is configured for
            models in several parts.
    """
    cuda = torch.cuda.is_available()
    if device == "cuda" and not cuda:
        raise ValueError("Expected argument `device` to be available, but CUDA is not, got 'cuda'")
    for name, sharding in SHARDING.items():
        if os.environ.get(name, "false").lower() == "true":
            raise ValueError(
                f"Expected accelerate to be configured for whole models, but it is for {sharding} "
                f"({name}): use torchrun, or run `accelerate config` without it"
            )
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", CUBLAS_WORKSPACE)
    use_cuda = cuda and device != "cpu"
    kind = "cuda" if use_cuda else "cpu"
    if PartialState._shared_state and PartialState().device.type != kind:
        # accelerate keeps a process on its first device: it would refuse another, or ignore it
        AcceleratorState._reset_state(reset_partial_state=True)
    group: dict[str, Any] = {"timeout": PATIENCE}
    if use_cuda and "LOCAL_RANK" in os.environ:  # what is on the CPU is exchanged there
        group["backend"] = "cuda:nccl,cpu:gloo"
    handlers = [InitProcessGroupKwargs(**group)]
    return Accelerator(cpu=not use_cuda, mixed_precision="no", kwargs_handlers=handlers)


@contextmanager
def deterministic_algorithms(wanted: bool) -> Iterator[None]:
    """Compute, if ``wanted``, the same bits every time on a GPU as well.

    Operations that have no such algorithm raise a RuntimeError that names them.
    """
    if not wanted:
        yield
        return
    before = torch.are_deterministic_algorithms_enabled()
    cudnn = torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = cudnn


def build_encoder(
    config: TrainConfig, device: str | torch.device = "cpu"
) -> tuple[Encoder, BackboneInfo]:
    """Build the encoder that a run begins with, equal in every run and on every process.

    Nothing is drawn before the global random generators are seeded with ``config.seed``.
    """
    set_seed(config.seed)
    model, info = build_model(config)
    encoder = Encoder(model, describe_model(config, info), device)
    broadcast_module(encoder.model)
    return encoder, info


def build_model(config: TrainConfig) -> tuple[BatchGraphModel, BackboneInfo]:
    """Build the model a configuration describes, with its pretrained weights."""
    backbone, info = create_backbone(
        config.backbone, config.weights, config.image_size, config.pool
    )
    dims = {"readout_dim": config.readout_dim or 0}
    if config.head_init == "readout":
        dims["head_dim"] = config.head_dim
    for name, dim in dims.items():
        if dim > info.num_features:
            raise ValueError(
                f"Expected argument `{name}` (--{name.replace('_', '-')}) to be at most the "
                f"{info.num_features} features of {config.backbone}, of which it is a readout, "
                f"got {dim}"
            )
    if crop_side(config) != config.image_size:
        _check_crops(config)
    freeze_parts(backbone, config.freeze)
    model = assemble_model(backbone, info.num_features, describe_model(config, info))
    if config.checkpoint_activations:
        model.checkpoint_activations(config.checkpoint_activations)
    return model, info


def crop_side(config: TrainConfig) -> int:
    """Return the side of training crops in pixels."""
    side = round(config.crop_ratio * config.image_size)
    return max(side, 2)  # torch cannot resize to a single pixel


def _check_crops(config: TrainConfig) -> None:
    """Raise unless a backbone for images of ``image_size`` takes training crops as well."""
    side = crop_side(config)
    with torch.device("meta"), torch.no_grad():
        backbone, _ = create_backbone(config.backbone, "none", config.image_size, config.pool)
        try:
            backbone.eval()(torch.empty(1, 3, side, side))
        except Exception as error:  # each family has its own
            raise ValueError(
                f"Expected argument `crop_ratio` (--crop-ratio) to suit backbone "
                f"{config.backbone!r}, but one for images of {config.image_size} x "
                f"{config.image_size} pixels takes none of {side} x {side}: pass 1"
            ) from error


def check_parts(config: TrainConfig, num_classes: int, labels: Tensor) -> None:
    """Build all parts of a configuration, without memory for the model: do its options fit?

    Raises:
        ValueError: If one of them does not; the message names it.
        FileNotFoundError: If there is no file with the weights.
    """
    with torch.device("meta"):
        _, info = build_model(dataclasses.replace(config, weights="none"))
    if config.weights not in ("auto", "none"):
        read_state_dict(config.weights)
    build_criterion(config, num_classes)
    build_augmentation(config, num_classes)
    build_teachers(config, num_classes, info.num_features)
    build_sampler(config, labels)


def freeze_parts(backbone: nn.Module, names: list[str]) -> None:
    """Freeze the named parts of an encoder.

    Raises:
        ValueError: If it has no part of that name.
    """
    parts = dict(backbone.named_modules())
    for name in names:
        if not name or name not in parts:
            raise ValueError(
                f"Expected argument `freeze` to name parts of the backbone "
                f"({', '.join(n for n, _ in backbone.named_children())}), got {name!r}"
            )
        parts[name].requires_grad_(False)


def describe_model(config: TrainConfig, info: BackboneInfo) -> ModelConfig:
    """Describe the model of a configuration, for :func:`bgl.models.load` to build it again."""
    return ModelConfig(
        backbone=config.backbone,
        image_size=config.image_size,
        resize=config.resize,
        mean=info.mean,
        std=info.std,
        head_dim=config.head_dim,
        blocks=tuple(BlockConfig(name, config.options[name]) for name in config.block_names),
        curvature=config.head_curvature,
        clip_radius=config.clip_radius,
        embedding=config.select_embedding,
        head_norm=config.head_norm,
        pool=config.pool,
    )


def build_criterion(
    config: TrainConfig, num_classes: int, embedding_dim: int | None = None
) -> MinedLoss:
    """Build the loss a configuration describes, with its miner, both by the head's distance.

    It is for embeddings of the head, or those of ``embedding_dim``.
    """
    curvature = config.head_curvature
    distance = "cosine" if curvature is None else HyperbolicDistance(curvature)
    dim = embedding_dim or config.head_dim
    loss = create_loss(config.loss, num_classes, dim, distance, **config.loss_options)
    miner = create_miner(config.miner, config.loss, distance, **config.miner_options)
    return MinedLoss(loss, miner)


def build_augmentation(config: TrainConfig, num_classes: int) -> AugmentationPlan | None:
    """Build the augmentation a configuration describes, or None."""
    if config.augmentation == "none":
        return None
    build = AUGMENTATIONS[config.augmentation]
    options = config.options[config.augmentation]
    return build(num_classes, config.head_dim, config.head_curvature, **options)


def build_teachers(config: TrainConfig, num_classes: int, channels: int) -> Teachers:
    """Build the teachers a configuration names."""
    teachers = {name: TEACHERS[name](**config.options[name]) for name in config.teacher_names}
    for teacher in teachers.values():
        teacher.join(channels, partial(build_criterion, config, num_classes))
    return Teachers(teachers)


def build_average(
    config: TrainConfig, model: BatchGraphModel, teachers: Teachers
) -> WeightAverage | None:
    """Build the older model, if it is measured or a teacher needs it."""
    return WeightAverage(model, config.ema) if config.ema > 0 or teachers.look_back else None


def build_sampler(config: TrainConfig, labels: Tensor) -> BatchSampler:
    """Build the sampler a configuration describes."""
    follows = "neighbors" in SAMPLERS.options(config.sampler)
    return SAMPLERS[config.sampler](
        labels,
        config.batch_size,
        config.per_class,
        config.seed,
        config.batches_per_epoch,
        **({"neighbors": config.class_neighbors} if follows else {}),
    )


def make_optimizer(
    config: TrainConfig, model: BatchGraphModel, *losses: nn.Module
) -> torch.optim.Optimizer:
    """Build AdamW or Adam with rates of their own for encoder, heads, proxies and blocks.

    On a GPU it is fused: one kernel, which looks itself whether the gradient was finite.

    Args:
        config: What is trained.
        model: The model.
        losses: The loss and whatever else is trained along: heads, and losses with proxies.
    """
    parts = [part for module in losses for part in module.modules()]
    mined = [part for part in parts if isinstance(part, MinedLoss)]
    proxies = dict.fromkeys(p for loss in mined for p in loss.parameters())
    trained = [model.head, *losses]
    heads = [p for part in trained for p in part.parameters() if p not in proxies]
    groups: list[dict[str, Any]] = [
        *encoder_groups(config, model.backbone),
        {"params": heads, "lr": config.lr * config.lr_head},
        {"params": list(proxies), "lr": config.lr_proxies},
        {"params": list(model.blocks.parameters()), "lr": config.lr_blocks},
    ]
    groups = [group for group in groups if group["params"]]
    make = torch.optim.AdamW if config.optimizer == "adamw" else torch.optim.Adam
    fused = groups[0]["params"][0].is_cuda
    optimizer = make(groups, weight_decay=config.weight_decay, fused=fused or None)

    def keep_kind(_: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
        # a checkpoint says what was used on another device
        here = {"fused": optimizer.defaults["fused"]}
        return {**state, "param_groups": [{**group, **here} for group in state["param_groups"]]}

    optimizer.register_load_state_dict_pre_hook(keep_kind)
    return optimizer


def encoder_groups(config: TrainConfig, backbone: nn.Module) -> list[dict[str, Any]]:
    """Give every layer of the encoder its rate; the group's ``encoder`` is True."""
    if config.layer_decay == 1:
        return [{"params": list(backbone.parameters()), "lr": config.lr, "encoder": True}]
    layers = param_groups_layer_decay(backbone, layer_decay=config.layer_decay)
    return [
        {"params": layer["params"], "lr": config.lr * layer["lr_scale"], "encoder": True}
        for layer in layers
    ]


def make_schedule(
    config: TrainConfig, optimizer: torch.optim.Optimizer, steps: int
) -> torch.optim.lr_scheduler.LRScheduler:
    """Build ``config.schedule`` after a linear warm-up over ``config.warmup`` of the steps.

    The encoder's rate is 0 in the first ``config.head_epochs``.
    """
    warmup = max(1, round(config.warmup * steps))

    def after(step: int) -> float:
        if config.schedule == "linear":
            return max(0.0, (steps - step) / max(1, steps - warmup))
        ended = step * config.epochs // steps  # whole epochs
        return config.lr_decay ** sum(epoch <= ended for epoch in config.lr_decay_epochs)

    def factor(step: int) -> float:
        return min((step + 1) / warmup, after(step))

    def encoder_factor(step: int) -> float:
        return factor(step) if step * config.epochs >= config.head_epochs * steps else 0.0

    factors: list[Callable[[int], float]] = [
        encoder_factor if "encoder" in group else factor for group in optimizer.param_groups
    ]
    return torch.optim.lr_scheduler.LambdaLR(optimizer, factors)
