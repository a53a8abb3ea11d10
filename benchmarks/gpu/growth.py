"""How a block, the losses, and a whole step grow with the batch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import torch

from benchmarks.gpu.case import Part, Scale, Target, launches, milliseconds, peak_gb
from benchmarks.gpu.step import Trial, vit
from bgl.hyperbolic import HyperbolicDistance, ToPoincareBall
from bgl.layers import DyBGRBlock
from bgl.losses import PairwiseCrossEntropyLoss

# Samples, and what they may take: milliseconds, GB, kernels of the block.
SIZES = ((405, 4, 0.1, 450), (1024, 5, 0.3, 450), (4096, 12, 3, 700), (16_384, 80, 45, 2500))
# Images of a whole step, and GB.
STEPS = ((4096, 10), (16_384, 60))


def block_and_losses(scale: Scale, samples: int) -> Iterator[float]:
    """A DyBGR block of 384 channels, and the hyperbolic loss before and after it."""
    n, channels = scale(samples, 24), scale(384, 8)
    torch.manual_seed(0)
    block = DyBGRBlock(channels, scale(15, 3)).to(scale.device)
    ball, loss = ToPoincareBall(), PairwiseCrossEntropyLoss(0.2, HyperbolicDistance())
    x = torch.randn(n, channels, device=scale.device, requires_grad=True)
    y = torch.arange(n, device=scale.device) // (9 if n % 9 == 0 else 8)

    def work() -> None:
        x.grad = None
        out = block(x, y=y)
        (loss(ball(x), y) + loss(ball(out), y)).backward()

    def block_alone() -> None:
        x.grad = None
        block(x, y=y).sum().backward()

    yield milliseconds(work, scale, warmup=3, calls=10)
    yield peak_gb(work, scale)
    yield launches(block_alone, scale)


def whole_step(scale: Scale, images: int) -> Iterator[float]:
    """A step with activations computed again."""
    config = replace(vit(scale, images, 8), checkpoint_activations=128)
    trial = Trial(config, scale)
    yield 1000 * config.batch_size / milliseconds(trial, scale, warmup=1, calls=1)
    yield peak_gb(trial, scale)


def targets(samples: int, ms: float, gb: float, kernels: int) -> tuple[Target, ...]:
    """Of one size."""
    name = f"block and losses, {samples:,} samples"
    return (
        Target(name, "≤", ms, "ms"),
        Target(f"{name}: memory", "≤", gb, "GB"),
        Target(f"block alone, {samples:,} samples", "≤", kernels, "kernels"),
    )


def step_targets(images: int, gb: float) -> tuple[Target, ...]:
    """Of one size."""
    name = f"step of ViT-S/16, {images:,} images"
    return Target(name, "≥", 1700, "images/s"), Target(f"{name}: memory", "≤", gb, "GB")


GROWTH = (
    *(Part(partial(block_and_losses, samples=s[0]), targets(*s)) for s in SIZES),
    *(Part(partial(whole_step, images=s[0]), step_targets(*s)) for s in STEPS),
)
