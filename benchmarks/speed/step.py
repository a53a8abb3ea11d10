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
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.speed.measure import SPAN, seconds_of
from bgl.datasets import load_dataset
from bgl.images import train_transform
from bgl.models import BatchGraphModel
from bgl.pipeline import CONFIGS, parse
from bgl.samplers import ClassBalancedSampler
from bgl.training import TrainConfig, build_model
from bgl.training.build import build_criterion, make_optimizer
from bgl.training.loop import freeze_batch_norm

PARTS = ("data", "encoder", "graph", "head", "loss", "optimiser")


@dataclass(frozen=True)
class Step:
    """A configuration whose training step is taken apart."""

    name: str
    options: tuple[str, ...]  # over the default benchmark's
    encoded: int | None = None  # images that the encoder is timed with; None: the batch

    def config(self, small: bool) -> TrainConfig:
        words = ["--config", str(CONFIGS / "emoji" / "dybgr.yaml"), *self.options]
        config = parse(words).configs[0]
        if small:
            backbone = "test_vit" if config.backbone.startswith("vit") else config.backbone
            config = dataclasses.replace(
                config,
                backbone=backbone,
                weights="none",
                batch_size=3 * config.per_class,
                image_size=64,
            )
        return config


_PAPER = (
    "--method=dybgr+dybgr",
    "--dybgr.ffn_ratio=4",
    "--weights=none",
    "--batch_size=405",
    "--per_class=9",
    "--image_size=224",
)
STEPS = (
    Step("default benchmark", ()),
    Step("ViT-S/16, 224 px", (*_PAPER, "--backbone=vit_small_patch16_224"), encoded=9),
    Step("ViT-B/16, 224 px", (*_PAPER, "--backbone=vit_base_patch16_224"), encoded=9),
)


def passes(function: Callable[..., Any], *inputs: Tensor) -> None:
    """A function forward and backward, down to its inputs."""
    inputs = tuple(x.detach().requires_grad_() for x in inputs)
    out = function(*inputs)
    torch.autograd.backward(out, torch.ones_like(out))


def measure_step(step: Step, small: bool) -> dict[str, Any]:
    """CPU seconds and FLOP of the parts of a step, for its whole batch."""
    clock = partial(seconds_of, span=0.0 if small else SPAN)
    config = step.config(small)
    torch.manual_seed(0)
    model, info = build_model(config)
    freeze_batch_norm(model.train())
    train = load_dataset("emoji").train
    criterion = build_criterion(config, train.num_classes)
    optimizer = make_optimizer(config, model, criterion)
    n, encoded = config.batch_size, min(step.encoded or config.batch_size, config.batch_size)

    data = train.with_transform(
        train_transform(config.image_size, info.mean, info.std, (config.crop_scale, 1.0))
    )
    sampler = ClassBalancedSampler(data.labels, n, config.per_class)
    loader = DataLoader(data, batch_sampler=sampler)
    images, labels = next(iter(loader))
    images = images[:encoded].contiguous(memory_format=torch.channels_last)
    x = torch.randn(n, info.num_features)
    z = torch.randn(n, config.head_dim)

    def update() -> None:
        nn.utils.clip_grad_norm_(model.parameters(), config.grad_clip)
        optimizer.step()

    seconds = {
        "data": clock(lambda: next(iter(loader))),
        "encoder": clock(lambda: passes(model.backbone, images)) * n / encoded,
        "graph": clock(lambda: passes(lambda v: model.contextualize(v, labels)[0], x)),
        "head": clock(lambda: passes(model.head, torch.cat([x, x]))),
        "loss": 2 * clock(lambda: passes(lambda v: criterion(v, labels), z)),
        "optimiser": clock(update),
    }
    return {
        "name": step.name,
        "encoder": config.backbone,
        "images": n,
        "encoded": encoded,
        "channels": info.num_features,
        "seconds": seconds,
        "flop": count(model, config, labels, info.num_features),
    }


def count(model: BatchGraphModel, config: TrainConfig, y: Tensor, channels: int) -> dict[str, int]:
    """Operations of the matrix products and convolutions of a step, forward and backward."""
    flop = {}
    with FakeTensorMode(allow_non_fake_inputs=True):
        images = torch.randn(len(y), 3, config.image_size, config.image_size)
        x, labels = torch.randn(len(y), channels), torch.arange(len(y)) // config.per_class
        works: dict[str, tuple[Callable[..., Any], Tensor]] = {
            "encoder": (model.backbone, images),
            "graph": (lambda v: model.contextualize(v, labels)[0], x),
            "head": (model.head, torch.cat([x, x])),
        }
        for part, (function, given) in works.items():
            with FlopCounterMode(display=False) as counter:
                passes(function, given)
            flop[part] = counter.get_total_flops()
    for parameter in model.parameters():
        parameter.grad = None
    return flop


def share(row: dict[str, Any], of: str) -> float:
    """What the graph adds (blocks, their half of head and loss), as a share of the encoder."""
    values = row[of]
    added = values["graph"] + values["head"] / 2 + values.get("loss", 0) / 2
    return float(added / values["encoder"])


def step_cells(row: dict[str, Any]) -> list[str]:
    """A line of the table: the parts, and bgl's share of the encoder in seconds and in FLOP."""
    total = sum(row["seconds"].values())
    parts = [f"{row['seconds'][p]:.2f} s ({row['seconds'][p] / total:.1%})" for p in PARTS]
    measured = "all" if row["encoded"] == row["images"] else f"{row['encoded']}"
    return [
        row["name"], f"{row['images']} (encoder: {measured})", *parts,
        f"{share(row, 'seconds'):.2%}", f"{share(row, 'flop'):.2%}",
    ]  # fmt: skip


STEP_HEADER = [
    "step", "images", *PARTS, "graph / encoder, measured", "graph / encoder, FLOP",
]  # fmt: skip
