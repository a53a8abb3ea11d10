"""Ranking and refining large sets."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from benchmarks.gpu.case import Part, Scale, Target, milliseconds, peak_gb
from bgl import refine
from bgl.metrics import retrieval_metrics

DEPTHS = (1, 10, 100, 1000)
PER_CLASS = 5  # about as many images of a product as in Stanford Online Products


def points(scale: Scale, n: int, channels: int) -> tuple[Tensor, Tensor]:
    """Draw clustered unit vectors, and their labels."""
    generator = torch.Generator(scale.device).manual_seed(0)
    normal = partial(torch.randn, generator=generator, device=scale.device)
    y = torch.arange(n, device=scale.device) // PER_CLASS
    center = normal(-(-n // PER_CLASS), channels)
    x = center[y].add_(normal(n, channels), alpha=1.5)
    return x.div_(x.norm(dim=1, keepdim=True)), y


def own_gallery(scale: Scale) -> Iterator[float]:
    """A test set like SOP's against itself, and how far it is from float64."""
    x, y = points(scale, scale(60_000, 200), scale(384, 16))
    depths = tuple(k for k in DEPTHS if k < len(x))
    yield milliseconds(lambda: retrieval_metrics(x, y, k=depths), scale, 1, 3) / 1000
    found = retrieval_metrics(x, y, k=depths)
    expected = recalls_in_float64(x, y, depths)
    yield max(abs(found[f"recall@{k}"] - value) for k, value in expected.items())


def recalls_in_float64(x: Tensor, y: Tensor, depths: tuple[int, ...]) -> dict[int, float]:
    """Recall@K of a set against itself, without any screening."""
    x = torch.nn.functional.normalize(x.double())
    found = dict.fromkeys(depths, 0)
    for rows in torch.arange(len(x), device=x.device).split(1024):
        score = x[rows] @ x.T
        score[torch.arange(len(rows), device=x.device), rows] = -torch.inf
        hit = y[score.topk(max(depths), dim=1).indices] == y[rows, None]
        for k in depths:
            found[k] += int(hit[:, :k].any(1).sum())
    return {k: count / len(x) for k, count in found.items()}


def many_queries(scale: Scale) -> Iterator[float]:
    """100,000 queries among a million."""
    x, y = points(scale, scale(1_000_000, 300), scale(384, 16))
    rows = slice(0, scale(100_000, 100))

    def work() -> None:
        retrieval_metrics(x[rows] + 0.01, y[rows], x, y)

    yield milliseconds(work, scale, 0, 1) / 1000
    yield peak_gb(work, scale)


def large_gallery(scale: Scale) -> Iterator[float]:
    """1,000 queries among ten million."""
    x, y = points(scale, scale(10_000_000, 400), scale(128, 16))
    rows = slice(0, scale(1000, 50))
    yield milliseconds(lambda: retrieval_metrics(x[rows] + 0.01, y[rows], x, y), scale, 0, 1) / 1000


def refined(scale: Scale, n: int) -> Iterator[float]:
    """Refine a set by its own neighbours."""
    x, _ = points(scale, scale(n, 200), scale(384, 16))
    yield milliseconds(lambda: refine(x), scale, 0, 1) / 1000


RETRIEVAL = (
    Part(
        own_gallery,
        (
            Target("60,000 × 384 against themselves, to rank 1,000", "≤", 1, "s"),
            Target("the same: largest difference of a Recall@K from float64", "≤", 1e-12),
        ),
    ),
    Part(partial(refined, n=60_000), (Target("refine 60,000 × 384", "≤", 3, "s"),)),
    Part(
        many_queries,
        (
            Target("100,000 queries among 1,000,000 × 384", "≤", 6, "s"),
            Target("the same: memory", "≤", 25, "GB"),
        ),
    ),
    Part(large_gallery, (Target("1,000 queries among 10,000,000 × 128", "≤", 3, "s"),)),
    Part(partial(refined, n=1_000_000), (Target("refine 1,000,000 × 384", "≤", 60, "s"),)),
)
