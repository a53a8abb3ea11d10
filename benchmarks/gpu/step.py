"""A training step on images that are on the device already."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn

from benchmarks.gpu.case import Part, Scale, Target, milliseconds, peak_gb
from bgl.training.build import (
    build_criterion,
    build_encoder,
    deterministic_algorithms,
    make_accelerator,
    make_optimizer,
)
from bgl.training.config import TrainConfig
from bgl.training.loop import compute_losses, freeze_batch_norm


class Step:
    """The step of a configuration, as the training loop takes it.

    Args:
        config: What to train.
        scale: Where.
        mode: Of ``torch.compile``; None: nothing is compiled.
    """

    def __init__(self, config: TrainConfig, scale: Scale, mode: str | None = None) -> None:
        self.config = config
        self.accelerator = make_accelerator(scale.device.type)
        device = self.accelerator.device
        encoder, info = build_encoder(config, device)
        self.model = encoder.model.train()
        freeze_batch_norm(self.model.backbone)
        classes = config.batch_size // config.per_class
        self.criterion = build_criterion(config, classes).to(device)
        self.optimizer = make_optimizer(config, self.model, self.criterion)
        self.labels = torch.arange(classes, device=device).repeat_interleave(config.per_class)
        size = (config.batch_size, 3, config.image_size, config.image_size)
        self.images = torch.randint(256, size, dtype=torch.uint8, device=device)
        self.images = self.images.contiguous(memory_format=torch.channels_last)
        self.mean, self.std = (
            255 * torch.tensor(values, device=device).view(3, 1, 1)
            for values in (info.mean, info.std)
        )
        self.encode, self.losses = self.model.encode, self._losses
        if mode is not None:
            how = {"mode": mode} if scale.cuda else {"backend": "eager"}  # quick: a trial
            self.encode, self.losses = (torch.compile(f, **how) for f in (self.encode, self.losses))

    def __call__(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        torch.compiler.cudagraph_mark_step_begin()
        with self.accelerator.autocast():
            features = self.encode(self.images.float().sub_(self.mean).div_(self.std))
        loss = self.losses(features)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), self.config.grad_clip)
        self.optimizer.step()

    def _losses(self, features: Tensor) -> Tensor:
        with self.accelerator.autocast():
            output = self.model.from_features(features, self.labels)
        criterion, alpha = self.criterion, self.config.alpha
        return compute_losses(output, self.labels, criterion, criterion, alpha)["loss"]


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
        options={"dybgr": {"k": scale(30, 4)}},
    )


def default(scale: Scale) -> TrainConfig:
    """The packaged emoji with all defaults: EfficientNet-Lite0 at 64 px."""
    return TrainConfig(
        backbone="test_resnet" if scale.small else "tf_efficientnet_lite0",
        weights="none",
        image_size=scale(64, 32),
        batch_size=scale(128, 12),
        per_class=4,
        options={"dybgr": {"k": scale(15, 4)}},
    )


def rates(config: TrainConfig, scale: Scale, mode: str | None = None) -> tuple[float, float]:
    """Milliseconds of a step, and the graph's share of it in percent."""
    whole = milliseconds(Step(config, scale, mode), scale)
    plain = milliseconds(Step(replace(config, method="none", options={}), scale, mode), scale)
    return whole, 100 * (1 - plain / whole)


def vit_step(scale: Scale) -> Iterator[float]:
    """Time and memory, as it is and with activations computed again."""
    config = vit(scale)
    whole, share = rates(config, scale)
    yield 1000 * config.batch_size / whole
    yield share
    yield memory(config, scale)
    yield memory(replace(config, checkpoint_activations=True), scale)


def memory(config: TrainConfig, scale: Scale) -> float:
    """GB of the second step, when the optimiser has its state."""
    step = Step(config, scale)
    step()
    return peak_gb(step, scale)


def default_step(scale: Scale) -> Iterator[float]:
    """Time alone."""
    yield from rates(default(scale), scale)


def overhead(scale: Scale) -> Iterator[float]:
    """What deterministic algorithms cost, in percent."""
    usual = milliseconds(Step(default(scale), scale), scale)
    with deterministic_algorithms(True):
        yield 100 * (milliseconds(Step(default(scale), scale), scale) / usual - 1)


def compiled_vit(scale: Scale) -> Iterator[float]:
    """As above, compiled."""
    config = vit(scale)
    whole, share = rates(config, scale, "default")
    yield 1000 * config.batch_size / whole
    yield share


def compiled_default(scale: Scale) -> Iterator[float]:
    """As above, in CUDA graphs."""
    yield milliseconds(Step(default(scale), scale, "reduce-overhead"), scale)


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
