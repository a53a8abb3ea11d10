"""With --deterministic a GPU gives the same bits twice, for all kinds of encoders and losses."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_training import assert_same_files, make_splits, tiny

from bgl.training import train

pytestmark = pytest.mark.gpu
BACKBONES = {
    "torchvision:googlenet": 64,
    "resnet50": 64,
    "vit_small_patch16_224": 224,
    "tf_efficientnet_lite0": 64,
}
METHODS = {
    "dybgr": {"method": "dybgr"},
    "bgformer": {"method": "bgformer"},
    "iaa": {"augmentation": "iaa", "loss": "multi-similarity"},
    "triplet": {"loss": "triplet"},
    "hyperbolic": {"method": "dybgr", "distance": "hyperbolic"},
}
# every encoder with a graph, and every method with one encoder
PAIRS = [(b, "dybgr") for b in BACKBONES] + [("resnet50", m) for m in METHODS if m != "dybgr"]


@pytest.mark.parametrize(("backbone", "method"), PAIRS)
def test_two_runs_are_the_same(
    device: torch.device, small: bool, tmp_path: Path, backbone: str, method: str
) -> None:
    config = tiny(
        backbone="test_resnet" if small else backbone,
        image_size=32 if small else BACKBONES[backbone],
        device=device.type,
        deterministic=True,
        epochs=1,
        batches_per_epoch=3,
        **METHODS[method],
    )
    for run in ("one", "other"):
        train(config, make_splits(), tmp_path / run)
    assert_same_files(tmp_path / "one", tmp_path / "other")
