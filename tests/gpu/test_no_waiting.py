"""Nothing waits for the GPU but the one named place of a step."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_training import make_splits, tiny
from torch import nn

from bgl.augment import AugmentedLoss, ClassStatistics, IntraClassAugmentation
from bgl.hyperbolic import HyperbolicDistance, ToPoincareBall
from bgl.layers import BatchFormerBlock, BGFormerBlock, DyBGRBlock, RandomGraphBlock
from bgl.losses import PairwiseCrossEntropyLoss
from bgl.training import Progress, train

pytestmark = pytest.mark.gpu
CHANNELS, CLASSES = 32, 45


@contextmanager
def waiting(mode: str, device: torch.device) -> Iterator[None]:
    """What waits for the GPU is an error, or a warning."""
    if device.type == "cpu":
        yield
        return
    torch.cuda.set_sync_debug_mode(mode)
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


BLOCKS: dict[str, Callable[[], nn.Module]] = {
    "dybgr": lambda: DyBGRBlock(CHANNELS),
    "dybgr-paper": lambda: DyBGRBlock(CHANNELS, formulation="paper", norm="graph"),
    "bgformer": lambda: BGFormerBlock(CHANNELS, 4),
    "bgformer-attention": lambda: BGFormerBlock(CHANNELS, 4, semantic="attention"),
    "batchformer": lambda: BatchFormerBlock(CHANNELS, 4),
    "random": lambda: RandomGraphBlock(CHANNELS),
}


@pytest.mark.parametrize("samples", [405, 4095])
@pytest.mark.parametrize("graphs", [False, True], ids=["one-graph", "graphs"])
@pytest.mark.parametrize("name", BLOCKS)
def test_blocks(device: torch.device, small: bool, name: str, graphs: bool, samples: int) -> None:
    n = CLASSES if small else samples
    block = BLOCKS[name]().to(device)
    x = torch.randn(n, CHANNELS, device=device, requires_grad=True)
    y = torch.arange(n, device=device) % CLASSES
    batch = y // 15 if graphs else None
    block(x, y=y, batch=batch).sum().backward()  # what is made once may wait
    with waiting("error", device):
        block(x, y=y, batch=batch).sum().backward()


@pytest.mark.parametrize("augmented", [False, True], ids=["plain", "iaa"])
@pytest.mark.parametrize("ball", [False, True], ids=["cosine", "hyperbolic"])
def test_losses_and_statistics(device: torch.device, ball: bool, augmented: bool) -> None:
    curvature = 0.1 if ball else None
    loss: nn.Module = PairwiseCrossEntropyLoss(0.2, HyperbolicDistance(0.1) if ball else None)
    statistics = ClassStatistics(CLASSES, CHANNELS, curvature=curvature).to(device)
    if augmented:
        loss = AugmentedLoss(loss, IntraClassAugmentation(statistics))
    x = torch.randn(9 * CLASSES, CHANNELS, device=device, requires_grad=True)
    y = torch.arange(9 * CLASSES, device=device) % CLASSES

    def step() -> None:
        z = ToPoincareBall()(x) if ball else x
        statistics.update(z.detach(), y)
        loss(z, y).backward()

    step()
    with waiting("error", device):
        step()


class Watch(Progress):
    """Counts where the second and the third step wait, by the line of the loop."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.training, self.step = device, False, 0
        self.places: Counter[str] = Counter()
        self._watching: Any = None

    def start(self, what: str, total: int) -> None:
        self.training = what.startswith("epoch")

    def advance(self, amount: int) -> None:
        if not amount or not self.training:
            return
        self.step += 1
        if self.step == 1:
            self._watching = warnings.catch_warnings(record=True)
            self.found = self._watching.__enter__()
            warnings.simplefilter("always")
            if self.device.type == "cuda":
                torch.cuda.set_sync_debug_mode("warn")
        elif self.step == 3:
            if self.device.type == "cuda":
                torch.cuda.set_sync_debug_mode("default")
            self._watching.__exit__(None, None, None)
            for warning in self.found:
                if "called a synchronizing" in str(warning.message):
                    self.places[f"{Path(warning.filename).name}:{warning.lineno}"] += 1


@pytest.mark.parametrize("method", ["none", "dybgr", "bgformer"])
@pytest.mark.parametrize("augmentation", ["none", "iaa"])
def test_a_step_waits_in_one_place(
    device: torch.device, tmp_path: Path, method: str, augmentation: str
) -> None:
    watch = Watch(device)
    config = tiny(
        method=method,
        augmentation=augmentation,
        device=device.type,
        epochs=1,
        batches_per_epoch=5,
        options={"iaa": {"start": 0.0}},
    )
    train(config, make_splits(), tmp_path, watch)
    assert watch.step == 5
    waits = sum(watch.places.values())
    assert waits <= 2, f"{waits} waits in two steps: {dict(watch.places)}"
