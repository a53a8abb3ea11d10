"""What test_processes.py trains with one process and with two: every case, for three steps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from tiny_training import make_splits, tiny
from torch import Tensor, nn

import bgl.training.build as building
from bgl.datasets import Splits
from bgl.models import BackboneInfo, BatchGraphModel
from bgl.training import TrainConfig, build_model, train

# every loss and every other thing that is computed from a batch, together where that shows as much
CASES: dict[str, dict[str, Any]] = {
    "dybgr": {"method": "dybgr"},
    "hyperbolic": {"method": "dybgr", "distance": "hyperbolic"},
    "bgformer, contrastive": {"method": "bgformer", "loss": "contrastive"},
    "batchformer, supcon": {"method": "batchformer", "loss": "supcon"},
    "dybgr+bgformer, contextual": {"method": "dybgr+bgformer", "loss": "contextual"},
    "iaa": {"augmentation": "iaa"},
    "iaa, full covariance, dybgr, multi-similarity": {
        "method": "dybgr",
        "augmentation": "iaa",
        "loss": "multi-similarity",
        "options": {"iaa": {"start": 0.0, "covariance": "full", "num_neighbors": 3}},
    },
    "checkpointed activations, proxies": {
        "method": "dybgr",
        "loss": "proxy-anchor",
        "checkpoint_activations": 4,
    },
    "look-alikes, softmax": {
        "method": "dybgr",
        "loss": "normalized-softmax",
        "class_neighbors": 1,
    },
    "teachers": {
        "teacher": "diffused+wide+refined",
        "ema": 0.9,
        "epochs": 2,
        "options": {"wide": {"heads": 2, "dim": 12}},
    },
    "last epoch's teacher": {"teacher": "diffused", "epochs": 2},
    "memory": {"method": "dybgr", "memory": 20},
    "frozen parts, soft triple": {
        "method": "dybgr",
        "loss": "soft-triple",
        "freeze": ["conv1", "layer1"],
    },
    "triplet": {"method": "dybgr", "loss": "triplet"},
}
# each way in which a batch of one process becomes that of several, once; the others are slow
FAST = ["hyperbolic", "iaa, full covariance, dybgr, multi-similarity"]
FAST += ["checkpointed activations, proxies", "teachers"]


class Float64(nn.Module):
    """A backbone in double precision for images in single precision."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.backbone(images.double())
        return features


def build(config: TrainConfig) -> tuple[BatchGraphModel, BackboneInfo]:
    model, info = build_model(config)
    model.backbone = Float64(model.backbone)
    return model, info


def train_case(name: str, folder: Path) -> None:
    """Train in float64; for a process of its own: nothing is put back."""
    torch.set_default_dtype(torch.float64)
    building.build_model = build  # type: ignore[attr-defined]
    splits = make_splits()
    # 15 images: the last share has one less
    parts = [part.subset(range(15)) for part in (splits.val, splits.test) if part is not None]
    splits = Splits(splits.name, splits.train, *parts)
    # 15 images in a batch: 7 and 8
    sizes = {"batch_size": 15, "per_class": 3, "epochs": 1, "batches_per_epoch": 3}
    config = tiny(**{**sizes, **CASES[name]})
    before = build(config)[0].state_dict()
    result = train(config, splits, folder)
    # only the first process writes; where there is one, it is the first
    if not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0:
        weight = load_file(folder / "model.safetensors")["head.0.weight"]
        moved = float((weight - before["head.0.weight"]).abs().max())
        found = {"metrics": result.metrics, "history": result.history, "moved": moved}
        (folder / "results.json").write_text(json.dumps(found))
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
