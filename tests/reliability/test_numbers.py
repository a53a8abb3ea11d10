"""Layers, heads and losses stay finite: any scale and precision, tied images, one class."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from profiles import searched
from safetensors.torch import load_file
from tiny_training import make_splits, read_csv, tiny
from torch import Tensor

import bgl.training.loop as loop
from bgl._precision import at_least_float32
from bgl.augment import (
    AugmentedLoss,
    ClassStatistics,
    IntraClassAugmentation,
    NeighborCorrection,
)
from bgl.hyperbolic import HyperbolicDistance, ToPoincareBall
from bgl.layers import (
    AdaptiveGraph,
    AttentionGraph,
    BatchFormerBlock,
    BatchGraphConv,
    BGFormerBlock,
    DyBGR,
    DyBGRBlock,
    LabelGraph,
    RandomGraphBlock,
)
from bgl.losses import LOSSES, MinedLoss, PairwiseCrossEntropyLoss, create_loss, create_miner
from bgl.metrics import retrieval_metrics
from bgl.training import build_model, train

HEADS, WIDTH = 2, 8
Layer = Callable[[Tensor, Tensor], Tensor]


def attention(x: Tensor, y: Tensor) -> Tensor:
    heads = x.view(len(x), HEADS, -1)
    edge_index, weight = AttentionGraph(k=3)(heads, heads)
    return BatchGraphConv(1.0)(heads, edge_index, weight)


def conv(x: Tensor, y: Tensor) -> Tensor:
    edge_index, weight = LabelGraph()(y)
    return BatchGraphConv(0.5)(x, edge_index, weight)


LAYERS: dict[str, Layer] = {
    "AdaptiveGraph, released": lambda x, y: AdaptiveGraph(k=3)(x, y=y)[1],
    "AdaptiveGraph, paper": lambda x, y: AdaptiveGraph(k=3, formulation="paper")(x, y=y)[1],
    # the released weights reach 1e3, and the result must stay in float16
    "DyBGR": lambda x, y: DyBGR(k=3)(x.clamp(-16, 16) if x.dtype == torch.float16 else x, y=y),
    "DyBGR, paper": lambda x, y: DyBGR(k=3, formulation="paper")(x, y=y),
    "RandomGraphBlock": lambda x, y: RandomGraphBlock(WIDTH, k=3).to(x.dtype)(x, y=y),
    "attention": attention,
    "LabelGraph, BatchGraphConv": conv,
    "DyBGRBlock": lambda x, y: DyBGRBlock(WIDTH, k=3).to(x.dtype)(x, y=y),
    "DyBGRBlock, GraphNorm": lambda x, y: DyBGRBlock(WIDTH, k=3, norm="graph").to(x.dtype)(x, y=y),
    "BGFormerBlock": lambda x, y: BGFormerBlock(WIDTH, HEADS, k=3).to(x.dtype)(x, y=y),
    "BGFormerBlock, attention": lambda x, y: BGFormerBlock(
        WIDTH, HEADS, k=3, semantic="attention"
    ).to(x.dtype)(x, y=y),
    "BatchFormerBlock": lambda x, y: BatchFormerBlock(WIDTH, HEADS).to(x.dtype)(x, y=y),
    "ToPoincareBall": lambda x, y: ToPoincareBall()(x),
    "ToPoincareBall, not clipped": lambda x, y: ToPoincareBall(c=1.0, clip_radius=None)(x),
    "HyperbolicDistance": lambda x, y: HyperbolicDistance()(ToPoincareBall()(x)),
}


def cosine_loss(name: str, miner: str = "default") -> Layer:
    def compute(x: Tensor, y: Tensor) -> Tensor:
        loss = MinedLoss(create_loss(name, 8, WIDTH), create_miner(miner, name))
        return loss.to(at_least_float32(x).dtype)(x, y)

    return compute


def hyperbolic_loss(name: str) -> Layer:
    def compute(x: Tensor, y: Tensor) -> Tensor:
        return create_loss(name, 8, WIDTH, HyperbolicDistance())(ToPoincareBall()(x), y)

    return compute


def augmented(covariance: str, gamma: float) -> Layer:
    def compute(x: Tensor, y: Tensor) -> Tensor:
        statistics = ClassStatistics(8, WIDTH, covariance=covariance)
        statistics.to(at_least_float32(x).dtype)
        statistics.estimate(x, y)
        correction = NeighborCorrection(num_neighbors=3, gamma=gamma)
        augmentation = IntraClassAugmentation(statistics, correction)
        return AugmentedLoss(create_loss("contrastive", 8, WIDTH), augmentation)(x, y)

    return compute


LOSSES: dict[str, Layer] = {
    **{name: cosine_loss(name) for name in LOSSES},
    "multi-similarity, batch-hard": cosine_loss("triplet", "batch-hard"),
    "pairwise-ce, sum": lambda x, y: PairwiseCrossEntropyLoss(
        0.01, HyperbolicDistance(c=0.1), reduction="sum"
    )(ToPoincareBall()(x), y),
    "pairwise-ce, hyperbolic": hyperbolic_loss("pairwise-ce"),
    "triplet, hyperbolic": hyperbolic_loss("triplet"),
    "iaa": augmented("diagonal", 0.1),
    "iaa, full covariance, γ = 0": augmented("full", 0.0),
}


@st.composite
def features(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """Features [N, 8] with 2 samples of each class or one class; the largest about the scale."""
    dtype = draw(st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]))
    n = 2 * draw(st.integers(2, 8))
    scale = 10.0 ** draw(st.integers(-8, 8))
    x = torch.randn(n, WIDTH, generator=torch.Generator().manual_seed(draw(st.integers(0, 99))))
    kind = draw(st.sampled_from(["random", "twins", "equal", "zero", "line", "one of another"]))
    if kind == "twins":  # the same image twice
        x = x[: n // 2].repeat(2, 1)
    elif kind in ("equal", "zero"):  # all images black: γ = 0
        x = x[:1].repeat(n, 1) * (kind == "equal")
    elif kind == "line":
        x = x[:1] * torch.linspace(0, 1, n)[:, None]
    elif kind == "one of another":  # scales
        x[0] *= 1e-4
    y = torch.arange(n) // 2 if draw(st.booleans()) else torch.zeros(n, dtype=torch.long)
    largest = torch.finfo(dtype).max / 64  # room for sums over the channels
    return (x.double() * scale).clamp(-largest, largest).to(dtype), y


def apart(x: Tensor) -> bool:
    """Whether rows are long enough and far enough from each other for gradients in float16: those
    of directions and distances are the inverse of these lengths."""
    closest, largest = float(torch.pdist(x).min()), float(x.abs().max())
    return float(x.norm(dim=1).min()) > 1e-2 and closest > 1e-2 * largest


def assert_finite(layer: Layer, x: Tensor, y: Tensor) -> None:
    torch.manual_seed(0)
    x = x.requires_grad_()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        out = layer(x, y)
    assert torch.isfinite(out).all(), out
    if out.requires_grad:
        out.double().mean().backward()
        assert x.grad is not None
        if x.dtype != torch.float16 or apart(x.detach().float()):
            assert torch.isfinite(x.grad).all(), x.grad


@pytest.mark.parametrize("search", searched(15, 4000))
@pytest.mark.parametrize("name", LAYERS)
def test_layers_stay_finite(name, search):
    search(given(features())(lambda drawn: assert_finite(LAYERS[name], *drawn)))()


@pytest.mark.parametrize("search", searched(15, 4000))
@pytest.mark.parametrize("name", LOSSES)
def test_losses_stay_finite(name, search):
    search(given(features())(lambda drawn: assert_finite(LOSSES[name], *drawn)))()


@pytest.mark.parametrize("search", searched(10, 3000))
@pytest.mark.parametrize("distance", ["cosine", "euclidean", HyperbolicDistance()], ids=str)
def test_metrics_stay_finite(distance, search):
    def measure(drawn: tuple[Tensor, Tensor]) -> None:
        x, y = drawn
        if not isinstance(distance, str):
            x = ToPoincareBall()(x)
        metrics = retrieval_metrics(x, y, distance=distance)
        assert all(math.isfinite(value) for value in metrics.values())

    search(given(features())(measure))()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("method", ["dybgr", "bgformer", "batchformer"])
@pytest.mark.parametrize("distance", ["cosine", "hyperbolic"])
def test_black_images_train(method, distance, dtype):
    """Loss and gradients of a batch of black images, under autocast as on a GPU."""
    config = tiny(method=method, distance=distance)
    model, _ = build_model(config)
    loop.freeze_batch_norm(model.train())
    images, y = torch.zeros(16, 3, 32, 32), torch.arange(16) // 4
    with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
        output = model(images, y)
    criterion = loop.build_criterion(config, 4)
    assert output.context_embeddings is not None
    both = output.embeddings.float(), output.context_embeddings.float()
    loss = sum(criterion(x, y) for x in both)
    assert torch.isfinite(loss)
    loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is None or torch.isfinite(parameter.grad).all(), name


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[list[Tensor], list[float]]]:
    """Make the loss, or its gradient, of chosen batches NaN; gives the labels of all batches, and
    the losses of the others."""

    def install(bad: set[int], gradient_only: bool = False) -> tuple[list[Tensor], list[float]]:
        build = loop.build_criterion
        seen: list[Tensor] = []
        good: list[float] = []

        def failing_criterion(config: Any, num_classes: int) -> torch.nn.Module:
            inner = build(config, num_classes)

            class Failing(torch.nn.Module):
                def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
                    seen.append(labels)
                    loss: Tensor = inner(embeddings, labels)
                    if len(seen) not in bad:
                        good.append(loss.item())
                        return loss
                    nan = (embeddings.sum() * 0).sqrt()  # 0, with a gradient of 0 / 0
                    return loss + nan if gradient_only else loss * math.nan

            return Failing()

        monkeypatch.setattr(loop, "build_criterion", failing_criterion)
        return seen, good

    return install


@pytest.mark.parametrize("gradient_only", [False, True], ids=["loss", "gradient"])
def test_batch_that_is_not_finite_is_named(failing, tmp_path: Path, gradient_only):
    (seen, _), splits = failing({4}, gradient_only), make_splits()
    said = r"not finite in epoch 2, step 2: \{'loss_plain': .*gradient norm nan; feature norms "
    said += r"from .* to .*; samples \[.*; images"
    with pytest.raises(FloatingPointError, match=said) as caught:
        train(tiny(), splits, tmp_path)
    named = [i for i in range(32) if f"'train/{i}'" in str(caught.value)]
    assert sorted(splits.train.labels[named].tolist()) == sorted(seen[-1].tolist())
    assert len(read_csv(tmp_path)) == 1  # the finished epoch is there to go on from


@pytest.mark.parametrize("gradient_only", [False, True], ids=["loss", "gradient"])
def test_skipped_batches_are_counted_and_leave_no_trace(failing, tmp_path: Path, gradient_only):
    _, good = failing({2, 3}, gradient_only)
    with pytest.warns(UserWarning, match="Skipped a batch.*not finite in epoch 1, step 2"):
        result = train(tiny(on_nonfinite="skip"), make_splits(), tmp_path)
    assert [row["skipped_steps"] for row in result.history] == [1, 1]
    assert [row["skipped_steps"] for row in read_csv(tmp_path)] == ["1", "1"]
    assert [row["loss"] for row in result.history] == pytest.approx(good)
    assert all(torch.isfinite(t).all() for t in load_file(tmp_path / "model.safetensors").values())


def test_without_a_good_batch_there_is_nothing_to_go_on_with(failing, tmp_path: Path):
    failing({3, 4})
    with (
        pytest.warns(UserWarning, match="Skipped"),
        pytest.raises(FloatingPointError, match="No loss of epoch 2 was finite"),
    ):
        train(tiny(on_nonfinite="skip"), make_splits(), tmp_path)
