"""The retrieval cases of ``speed.py``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from benchmarks.speed import peers
from benchmarks.speed.case import Comparison, Scale, Values, class_data, flop
from bgl.hyperbolic import HyperbolicDistance, ToPoincareBall
from bgl.metrics import retrieval_metrics

RECALL_AT = (1, 2, 4, 8)


def retrieval_set(scale: Scale, n: int | None = None) -> tuple[Tensor, Tensor]:
    """Embeddings like those of SOP's test images: about five per class."""
    n = scale.images if n is None else scale(n, 100)
    x, y = class_data(Scale(), n // 5, 5, scale(384, 16))
    return x / x.size(1) ** 0.5, y


def measured(x: Tensor, y: Tensor, distance: Any = "cosine") -> Values:
    found = retrieval_metrics(x, y, k=RECALL_AT, distance=distance)
    return {name: torch.tensor(v) for name, v in found.items() if not name.startswith("num_")}


def search_flop(x: Tensor) -> float:
    return flop([(len(x), x.size(1), len(x))], train=False)


def recall_faiss(scale: Scale) -> Comparison:
    x, y = retrieval_set(scale)
    return Comparison(
        lambda: measured(x, y),
        lambda: peers.faiss_metrics(x, y, RECALL_AT),
        products=search_flop(x),
    )


def recall_library(scale: Scale, k: str | None, n: int | None = None) -> Comparison:
    x, y = retrieval_set(scale, n)

    def ours() -> Values:
        found = measured(x, y)
        return {name: found[name] for name in ("recall@1", "map@r", "r_precision")}

    return Comparison(
        ours, lambda: peers.accuracy_calculator_metrics(x, y, k), products=search_flop(x)
    )


def recall_oml(scale: Scale) -> Comparison:
    x, y = retrieval_set(scale)

    def ours() -> Values:
        return {name: value for name, value in measured(x, y).items() if name.startswith("recall")}

    return Comparison(
        ours, lambda: peers.open_metric_learning_recall(x, y, RECALL_AT), products=search_flop(x)
    )


def recall_hyperbolic(scale: Scale) -> Comparison:
    x, y = retrieval_set(scale)
    ball = ToPoincareBall()(3 * x)
    distance = HyperbolicDistance()

    def check() -> tuple[Values, Values]:
        rows = slice(0, 500)
        by_loop = peers.hyperbolic_row_loop(ball[rows].double(), y[rows], RECALL_AT, distance.c)
        return measured(ball[rows], y[rows], distance), by_loop

    return Comparison(
        lambda: measured(ball, y, distance),
        lambda: measured(x, y),
        check=check,
    )


def recall_rows(scale: Scale) -> Comparison:
    x, y = retrieval_set(scale, 2000)
    ball = ToPoincareBall()(3 * x)
    distance = HyperbolicDistance()
    return Comparison(
        lambda: measured(ball, y, distance),
        lambda: peers.hyperbolic_row_loop(ball, y, RECALL_AT, distance.c),
        products=search_flop(x),
    )
