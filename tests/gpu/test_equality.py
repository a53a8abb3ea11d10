"""In float32 on a GPU the same graphs, losses and metrics as in float64 on a CPU.

Points are drawn in tight groups, so that who is a neighbour of whom is beyond doubt.
"""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bgl import refine
from bgl.augment import ClassStatistics, IntraClassAugmentation, NeighborCorrection
from bgl.hyperbolic import HyperbolicDistance, ToPoincareBall
from bgl.layers import BatchFormerBlock, BGFormerBlock, DyBGRBlock
from bgl.losses import LOSSES, MinedLoss, create_loss, create_miner
from bgl.metrics import retrieval_metrics

pytestmark = pytest.mark.gpu
CHANNELS = 32
FORWARD, BACKWARD = 1e-4, 1e-3  # relative to the largest entry


def groups(n: int, channels: int = CHANNELS) -> tuple[Tensor, Tensor, int]:
    """Float64 points in groups, their labels, and how many others are in a group."""
    size = next(size for size in (4, 5, 8, 9, 3) if n % size == 0)
    y = torch.arange(n) // size
    x = 3 * torch.randn(n // size, channels)[y] + 0.3 * torch.randn(n, channels)
    return x.double(), y, size - 1


def assert_apart(x: Tensor, k: int) -> None:
    """The k nearest of each point are much nearer than all others."""
    nearest = torch.cdist(x[:64], x).topk(k + 2, largest=False).values[:, 1:]
    assert float((nearest[:, -1] - nearest[:, -2]).min()) > 0.1


def compare(
    module: nn.Module, call: Callable[..., Tensor], x: Tensor, device: torch.device, **given: Any
) -> None:
    """Output and gradients of a module, and those of its copy in float64 on the CPU."""
    results = []
    for dtype, place in ((torch.float64, torch.device("cpu")), (torch.float32, device)):
        own = copy.deepcopy(module).to(place, dtype)
        z = x.detach().to(place, dtype).requires_grad_()
        out = call(own, z, **{name: v if v is None else v.to(place) for name, v in given.items()})
        weight = torch.linspace(-1, 1, out.numel(), dtype=torch.float64).view(out.shape)
        loss = (out * (weight.to(out) if out.dim() else 1)).sum()
        wanted = [z, *(p for p in own.parameters() if p.requires_grad)]
        grads = torch.autograd.grad(loss, wanted, allow_unused=True)
        results.append([out.detach(), *grads])
    for i, (expected, got) in enumerate(zip(*results, strict=True)):
        assert (expected is None) == (got is None)
        if expected is None or got is None:
            continue
        assert got.device.type == device.type
        error = float((got.cpu().double() - expected).abs().max())
        assert error <= (BACKWARD if i else FORWARD) * float(expected.abs().max().clamp(min=1e-6))


@pytest.fixture(params=["ieee", "tf32", "tf32-new"])
def switch(request: pytest.FixtureRequest, device: torch.device) -> Iterator[None]:
    """Products as they are, and with TF32 allowed by the old and by the new switch."""
    matmul: Any = torch.backends.cuda.matmul
    if request.param == "ieee" or device.type == "cpu":
        yield
        return
    name, on = ("allow_tf32", True) if request.param == "tf32" else ("fp32_precision", "tf32")
    if not hasattr(matmul, name):
        pytest.skip("this PyTorch has no such switch")
    before = getattr(matmul, name)
    setattr(matmul, name, on)
    yield
    setattr(matmul, name, before)


BLOCKS: dict[str, Callable[[int], nn.Module]] = {
    "dybgr": lambda k: DyBGRBlock(CHANNELS, k),
    "dybgr-paper": lambda k: DyBGRBlock(CHANNELS, k, formulation="paper"),
    "dybgr-graph-norm": lambda k: DyBGRBlock(CHANNELS, k, norm="graph"),
    "bgformer": lambda k: BGFormerBlock(CHANNELS, 4, 3),
    "bgformer-attention": lambda k: BGFormerBlock(CHANNELS, 4, 3, semantic="attention"),
    "batchformer": lambda k: BatchFormerBlock(CHANNELS, 4),
}


def call(block: nn.Module, x: Tensor, **given: Any) -> Tensor:
    out: Tensor = block(x, **given)
    return out


@pytest.mark.parametrize("labels", [True, False], ids=["labels", "no-labels"])
@pytest.mark.parametrize("graphs", [1, 3], ids=["one-graph", "graphs"])
@pytest.mark.parametrize("name", BLOCKS)
def test_blocks(device: torch.device, name: str, graphs: int, labels: bool) -> None:
    n = 12 if "former" in name else 36
    x, y, k = groups(n * graphs)
    assert_apart(x, k)
    batch = None if graphs == 1 else torch.arange(len(x)) // n
    compare(BLOCKS[name](k), call, x, device, y=y if labels else None, batch=batch)


@pytest.mark.parametrize("name", BLOCKS)
def test_half_precision_turns_no_gradient_aside(device: torch.device, name: str) -> None:
    x, y, k = groups(12 if "former" in name else 36)
    block, loss = BLOCKS[name](k).to(device), create_loss("pairwise-ce", 9, CHANNELS)
    y, found = y.to(device), []
    for half in (False, True):
        z = x.float().to(device).requires_grad_()
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            out = block(z, y=y)
        value = loss(out, y)
        found.append((value.detach(), *torch.autograd.grad(value, z)))
    (exact, gradient), (rough, other) = found
    assert float((rough - exact).abs()) <= 2e-2 * float(exact)
    assert float(torch.cosine_similarity(gradient.flatten(), other.flatten(), dim=0)) >= 0.99


@pytest.mark.parametrize("n", [405, 1025, 2049, 4096])
@pytest.mark.parametrize("name", ["dybgr", "dybgr-paper"])
def test_large_batches(device: torch.device, small: bool, name: str, n: int) -> None:
    x, y, k = groups(45 if small else n)
    assert_apart(x, k)
    compare(BLOCKS[name](k), call, x, device, y=y)


@pytest.mark.usefixtures("switch")
@pytest.mark.parametrize("name", ["dybgr", "dybgr-paper"])
def test_graphs_under_every_switch(device: torch.device, small: bool, name: str) -> None:
    """The feed-forward network obeys the switch, the graph does not."""
    x, y, k = groups(45 if small else 405)
    block: Any = BLOCKS[name](k)
    compare(block.mixer, call, x, device, y=y)


def test_candidates(device: torch.device) -> None:
    x, y, k = groups(45)
    candidates = torch.cdist(x, x).topk(12, largest=False).indices
    learner: Any = BLOCKS["dybgr"](k)

    def weights(module: nn.Module, z: Tensor, **given: Any) -> Tensor:
        edges, weight = module(z, **given)
        dense = torch.zeros(len(z), len(z), dtype=weight.dtype, device=weight.device)
        return dense.index_put((edges[1], edges[0]), weight)

    compare(learner.mixer.learner, weights, x, device, y=y, candidates=candidates)


def hyperbolic(loss: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    value: Tensor = loss(ToPoincareBall()(x), y)
    return value


def euclidean(loss: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    value: Tensor = loss(x, y)
    return value


@pytest.mark.parametrize("name", LOSSES)
def test_losses_with_their_miners(device: torch.device, name: str) -> None:
    x, y, _ = groups(36)
    x = x + torch.randn_like(x)  # classes that overlap, or there is nothing to mine
    loss = MinedLoss(create_loss(name, 9, CHANNELS), create_miner("default", name))
    compare(loss, euclidean, x, device, y=y)


@pytest.mark.usefixtures("switch")
@pytest.mark.parametrize("name", ["pairwise-ce", "triplet"])
def test_hyperbolic_losses(device: torch.device, name: str) -> None:
    x, y, _ = groups(36)
    distance = HyperbolicDistance(0.1)
    loss = MinedLoss(
        create_loss(name, 9, CHANNELS, distance), create_miner("default", name, distance)
    )
    compare(loss, hyperbolic, x + torch.randn_like(x), device, y=y)


@pytest.mark.parametrize("correction", [False, True], ids=["plain", "corrected"])
@pytest.mark.parametrize("covariance", ["diagonal", "full"])
def test_augmentation(device: torch.device, covariance: str, correction: bool) -> None:
    x, y, _ = groups(36)
    copies = torch.randn(3, *x.shape, dtype=torch.float64)

    def copied(statistics: Any, z: Tensor, y: Tensor, noise: Tensor) -> Tensor:
        with torch.no_grad():
            statistics.estimate(z.detach(), y)
            statistics.update(z.detach() + 0.1, y)
        corrected = NeighborCorrection(num_neighbors=3) if correction else None
        augmentation = IntraClassAugmentation(statistics, corrected)
        return augmentation(z, y, noise=noise.to(z))[0].cpu()

    statistics = ClassStatistics(9, CHANNELS, covariance=covariance)
    if covariance == "full":  # its eigenvectors are known up to their sign only
        copies = torch.zeros_like(copies)
    results = []
    for dtype, place in ((torch.float64, torch.device("cpu")), (torch.float32, device)):
        own = copy.deepcopy(statistics).to(place, dtype)
        results.append(copied(own, x.to(place, dtype), y.to(place), copies.to(place)))
    error = (results[0] - results[1].double()).abs().max()
    assert float(error) <= 1e-3 * float(results[0].abs().max())


@pytest.mark.usefixtures("switch")
@pytest.mark.parametrize("own", [True, False], ids=["own-gallery", "gallery"])
@pytest.mark.parametrize("distance", ["cosine", "euclidean", HyperbolicDistance()], ids=str)
def test_metrics_are_those_of_float64(
    device: torch.device, small: bool, distance: Any, own: bool
) -> None:
    n = 200 if small else 3000
    x, y = torch.randn(n, 16), torch.randint(n // 10, (n,))
    if not isinstance(distance, str):
        x = ToPoincareBall()(x)
    gallery = (None, None) if own else (x.flip(0) * 0.99, y.flip(0))
    expected = retrieval_metrics(
        *(v if v is None or not v.is_floating_point() else v.double() for v in (x, y, *gallery)),
        distance=distance,
    )
    found = retrieval_metrics(
        *(v if v is None else v.to(device) for v in (x, y, *gallery)), distance=distance
    )
    assert found == pytest.approx(expected, abs=1e-12)


def test_refined_vectors(device: torch.device) -> None:
    x, _, _ = groups(90)
    expected = refine(x, x[:20] + 0.01, k=3)
    found = refine(x.float().to(device), (x[:20] + 0.01).float().to(device), k=3)
    for got, wanted in zip(found, expected, strict=True):
        assert float((got.cpu().double() - wanted).abs().max()) < 1e-3


def test_switches_of_the_environment(device: torch.device, small: bool) -> None:
    """What NVIDIA's containers set is read once, at the start."""
    chosen = "under_every_switch and ieee or hyperbolic_losses and ieee or float64 and ieee"
    if small:
        chosen = "hyperbolic_losses and ieee"
    words = [__file__, "-q", "-m", "gpu", "-k", chosen, "--device", device.type]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *words]
        + (["--small"] if small else []),
        cwd=Path(__file__).parents[2],
        env={**os.environ, "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE": "1", "NVIDIA_TF32_OVERRIDE": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:]
