"""A training step on images that are on the device already."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import torch

from benchmarks.gpu.case import Part, Scale, Target, milliseconds, peak_gb
from bgl.training.build import (
    build_average,
    build_criterion,
    build_encoder,
    deterministic_algorithms,
    make_accelerator,
    make_optimizer,
)
from bgl.training.config import TrainConfig
from bgl.training.loop import compute_losses, freeze_batch_norm
from bgl.training.step import Reading, Step
from bgl.training.teachers import Teachers


class Trial:
    """The step of a configuration, as the training loop takes it, again and again.

    Args:
        config: What to train.
        scale: Where.
    """

    def __init__(self, config: TrainConfig, scale: Scale) -> None:
        config = replace(config, device=scale.device.type)
        device = make_accelerator(config.device, config.deterministic).device
        encoder, info = build_encoder(config, device)
        model = encoder.model.train()
        freeze_batch_norm(model.backbone)
        classes = config.batch_size // config.per_class
        self.criterion = build_criterion(config, classes).to(device)
        optimizer = make_optimizer(config, model, self.criterion)
        average = build_average(config, model, Teachers())
        self.step = Step(config, model, optimizer, device, compute_losses, average=average)
        self.labels = torch.arange(classes, device=device).repeat_interleave(config.per_class)
        self.sizes = [config.batch_size]
        size = (config.batch_size, 3, config.image_size, config.image_size)
        images = torch.randint(256, size, dtype=torch.uint8, device=device)
        self.images = images.contiguous(memory_format=torch.channels_last)
        self.mean, self.std = (
            255 * torch.tensor(values, device=device).view(3, 1, 1)
            for values in (info.mean, info.std)
        )
        self.running: Reading | None = None

    def __call__(self) -> None:
        images = self.images.float().sub_(self.mean).div_(self.std)
        _, reading = self.step(
            images, self.labels, self.criterion, self.criterion, seed=0, sizes=self.sizes
        )
        if self.running is not None:  # the step before, as in the loop
            self.running.values()
        self.running = reading


def vit(scale: Scale, images: int = 405, per_class: int = 9) -> TrainConfig:
    """Two DyBGR blocks on ViT-S/16 with the hyperbolic loss, as in the papers."""
    return TrainConfig(
        method="dybgr+dybgr",
        backbone="test_resnet" if scale.small else "vit_small_patch16_224",
        weights="none",
        image_size=scale(224, 32),
        head_dim=scale(384, 16),
        distance="hyperbolic",
        loss_options={"temperature": 0.2, "reduction": "sum"},
        batch_size=scale(images, 12),
        per_class=scale(per_class, 3),
        lr=3e-5,
        options={"dybgr": {"k": scale(30, 4), "ffn_ratio": 4.0}},
    )


def default(scale: Scale) -> TrainConfig:
    """The recipe graph on the packaged emoji: EfficientNet-Lite0 at 64 px."""
    return TrainConfig(
        method="dybgr",
        backbone="test_resnet" if scale.small else "tf_efficientnet_lite0",
        weights="none",
        image_size=scale(64, 32),
        batch_size=scale(128, 12),
        per_class=4,
        options={"dybgr": {"k": scale(15, 4)}},
    )


def rates(config: TrainConfig, scale: Scale) -> tuple[float, float]:
    """Milliseconds of a step, and the graph's share of it in percent."""
    whole = milliseconds(Trial(config, scale), scale)
    plain = milliseconds(Trial(replace(config, method="none", options={}), scale), scale)
    return whole, 100 * (1 - plain / whole)


def memory(config: TrainConfig, scale: Scale) -> float:
    """GB of the second step, when the optimiser has its state."""
    trial = Trial(config, scale)
    trial()
    return peak_gb(trial, scale)


def vit_step(scale: Scale) -> Iterator[float]:
    """Time and memory, as it is and with activations computed again."""
    config = vit(scale)
    whole, share = rates(config, scale)
    yield 1000 * config.batch_size / whole
    yield share
    yield memory(config, scale)
    yield memory(replace(config, checkpoint_activations=64), scale)


def default_step(scale: Scale) -> Iterator[float]:
    """Time alone."""
    yield from rates(default(scale), scale)


def overhead(scale: Scale) -> Iterator[float]:
    """What deterministic algorithms cost, in percent."""
    config = replace(default(scale), deterministic=True)
    with deterministic_algorithms(True):  # first, before cuBLAS has made its plans
        repeated = milliseconds(Trial(config, scale), scale)
    yield 100 * (repeated / milliseconds(Trial(default(scale), scale), scale) - 1)


def compiled_default(scale: Scale) -> Iterator[float]:
    """As above, compiled."""
    with compiling(scale):
        yield milliseconds(Trial(replace(default(scale), compile=True), scale), scale)


def compiled_vit(scale: Scale) -> Iterator[float]:
    """As above, compiled."""
    config = replace(vit(scale), compile=True)
    with compiling(scale):
        whole, share = rates(config, scale)
    yield 1000 * config.batch_size / whole
    yield share


def compiling(scale: Scale) -> AbstractContextManager[Any]:
    """Compile at full size; a trial has no minutes for it."""
    return torch.compiler.set_stance("force_eager" if scale.small else "default")


VIT, LITE = "ViT-S/16, 224 px, 405 images", "EfficientNet-Lite0, 64 px, 128 images"
STEP = (
    Part(
        vit_step,
        (
            Target(VIT, "≥", 2500, "images/s"),
            Target(f"{VIT}: share of the graph", "≤", 5, "%"),
            Target(f"{VIT}: memory", "≤", 20, "GB"),
            Target(f"{VIT}: memory with recomputed activations", "≤", 4, "GB"),
        ),
    ),
    Part(
        default_step,
        (Target(LITE, "≤", 12, "ms"), Target(f"{LITE}: share of the graph", "≤", 30, "%")),
    ),
)
DETERMINISTIC = (Part(overhead, (Target("what it costs of a step", "≤", 30, "%"),)),)
COMPILED = (
    Part(compiled_default, (Target(LITE, "≤", 5, "ms"),)),
    Part(
        compiled_vit,
        (
            Target(VIT, "≥", 3500, "images/s"),
            Target(f"{VIT}: share of the graph", "≤", 1.5, "%"),
        ),
    ),
)
