"""Where the time of a training step goes.

The parts of a step (``bgl/training/loop.py``) are run one after the other and timed alone: data
(decoding, transforms, batching), encoder, graph blocks, head and loss, each forward and backward,
and the optimiser with gradient clipping. Encoders that are too slow for a whole batch here take
fewer images, and their seconds are scaled to the batch: an encoder's cost is linear in the images.
Beside the seconds stand floating-point operations, counted by PyTorch for the whole batch without
computing anything.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.speed.measure import SPAN, seconds_of
from bgl.datasets import load_dataset
from bgl.images import train_transform
from bgl.images.loading import ImageLoader
from bgl.models import BatchGraphModel
from bgl.pipeline import CONFIGS, parse
from bgl.samplers import ClassBalancedSampler
from bgl.training import TrainConfig, build_model
from bgl.training.build import build_criterion, crop_side, make_optimizer
from bgl.training.loading import SeededCrops, seeded_batches
from bgl.training.loop import freeze_batch_norm

PARTS = ("data", "encoder", "graph", "head", "loss", "optimiser")
STEP_HEADER = ["step", "images", *PARTS, "graph / encoder, measured", "graph / encoder, FLOP"]


@dataclass(frozen=True)
class Step:
    """A configuration whose training step is taken apart."""

    name: str
    options: tuple[str, ...]  # over the default benchmark's
    encoded: int | None = None  # images that the encoder is timed with; None: the batch

    def config(self, small: bool) -> TrainConfig:
        words = ["--config", str(CONFIGS / "emoji" / "dybgr.yaml"), *self.options]
        config = parse(words).configs[0]
        if not small:
            return config
        backbone = "test_vit" if config.backbone.startswith("vit") else config.backbone
        batch = 3 * config.per_class
        return dataclasses.replace(
            config, backbone=backbone, weights="none", batch_size=batch, image_size=64
        )


_PAPER = (
    *("--method=dybgr+dybgr", "--dybgr.ffn_ratio=4", "--weights=none"),
    *("--batch_size=405", "--per_class=9", "--image_size=224", "--crop_ratio=1"),
)
STEPS = (
    Step("default benchmark", ()),
    Step("ViT-S/16, 224 px", (*_PAPER, "--backbone=vit_small_patch16_224"), encoded=9),
    Step("ViT-B/16, 224 px", (*_PAPER, "--backbone=vit_base_patch16_224"), encoded=9),
)


@dataclass(frozen=True)
class StepCost:
    """CPU seconds and FLOP of the parts of a step, for its whole batch."""

    name: str
    images: int
    encoded: int
    seconds: dict[str, float]
    flop: dict[str, int]

    def cells(self) -> list[str]:
        """Write a line of the table: the parts, and the graph's share of the encoder."""
        total = sum(self.seconds.values())
        parts = [f"{self.seconds[p]:.2f} s ({self.seconds[p] / total:.1%})" for p in PARTS]
        measured = "all" if self.encoded == self.images else f"{self.encoded}"
        shares = [f"{share(self.seconds):.2%}", f"{share(self.flop):.2%}"]
        return [self.name, f"{self.images} (encoder: {measured})", *parts, *shares]


def share(values: dict[str, Any]) -> float:
    """Compute what the graph adds (blocks, half of head and loss), as a share of the encoder."""
    added = values["graph"] + values["head"] / 2 + values.get("loss", 0) / 2
    return float(added / values["encoder"])


def passes(function: Callable[..., Any], x: Tensor) -> None:
    """Run a function forward and backward, down to its input."""
    out = function(x.detach().requires_grad_())
    torch.autograd.backward(out, torch.ones_like(out))


def layers(model: BatchGraphModel, labels: Tensor) -> dict[str, Callable[[Tensor], Tensor]]:
    """Return the parts of a model that compute."""
    return {
        "encoder": model.backbone,
        "graph": lambda x: model.contextualize(x, labels)[0],
        "head": model.head,
    }


def measure_step(step: Step, small: bool) -> StepCost:
    """Time the parts of a step and count their operations."""
    clock = partial(seconds_of, span=0.0 if small else SPAN)
    config = step.config(small)
    torch.manual_seed(0)
    model, info = build_model(config)
    freeze_batch_norm(model.train())
    train = load_dataset("emoji").train
    criterion = build_criterion(config, train.num_classes)
    optimizer = make_optimizer(config, model, criterion)
    n, encoded = config.batch_size, min(step.encoded or config.batch_size, config.batch_size)

    side = crop_side(config)
    transform = train_transform(side, info.mean, info.std, (config.crop_scale, 1.0))
    crops = SeededCrops(train, transform.crop)
    loader = ImageLoader(crops, image_size=side, batch_size=n)
    keys = seeded_batches(ClassBalancedSampler(train.labels, n, config.per_class), 0, 0)[0]
    labels = train.labels[[index for index, _ in keys]]

    def load() -> Tensor:
        return transform.normalize(next(loader.load([keys]))[0])

    images = load()[:encoded]
    x = torch.randn(n, info.num_features)
    z = torch.randn(n, config.head_dim)

    def update() -> None:
        nn.utils.clip_grad_norm_(model.parameters(), config.grad_clip)
        optimizer.step()

    inputs = {"encoder": images, "graph": x, "head": torch.cat([x, x])}
    seconds = {"data": clock(load)}
    for part, layer in layers(model, labels).items():
        seconds[part] = clock(partial(passes, layer, inputs[part]))
    seconds["encoder"] *= n / encoded
    seconds["loss"] = 2 * clock(lambda: passes(lambda v: criterion(v, labels), z))
    seconds["optimiser"] = clock(update)
    return StepCost(step.name, n, encoded, seconds, count(model, config, info.num_features))


def count(model: BatchGraphModel, config: TrainConfig, channels: int) -> dict[str, int]:
    """Count the operations of the products and convolutions of a step, forward and backward."""
    flop = {}
    n, size = config.batch_size, crop_side(config)
    with FakeTensorMode(allow_non_fake_inputs=True):
        labels, x = torch.arange(n) // config.per_class, torch.randn(n, channels)
        inputs = {"encoder": torch.randn(n, 3, size, size), "graph": x, "head": torch.cat([x, x])}
        for part, layer in layers(model, labels).items():
            with FlopCounterMode(display=False) as counter:
                passes(layer, inputs[part])
            flop[part] = counter.get_total_flops()
    for parameter in model.parameters():
        parameter.grad = None
    return flop
