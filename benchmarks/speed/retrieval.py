"""The retrieval cases."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.speed import peers
from benchmarks.speed.case import Peer, Scale, Sides, Values, Work, class_data, flop
from bgl.hyperbolic import HyperbolicDistance, ToPoincareBall
from bgl.metrics import retrieval_metrics

RECALL_AT = (1, 2, 4, 8)


def retrieval_set(scale: Scale, n: int) -> tuple[Tensor, Tensor]:
    """Draw embeddings like those of SOP's test images: about five per class."""
    x, y = class_data(Scale(), scale(n, 100) // 5, 5, scale(384, 16))
    return x / x.size(1) ** 0.5, y


def measured(x: Tensor, y: Tensor, distance: Any = "cosine") -> Values:
    found = retrieval_metrics(x, y, k=RECALL_AT, distance=distance)
    return {name: torch.tensor(v) for name, v in found.items() if not name.startswith("num_")}


def search_flop(x: Tensor) -> float:
    """Count the products of a set against itself: each pair once."""
    return flop([(len(x), x.size(1), len(x))], train=False) / 2


# peers rank in float32
ranking = partial(Peer, target=1.0, tolerance=1e-3)


def recall(scale: Scale) -> Sides:
    """Peers that rank a large set."""
    x, y = retrieval_set(scale, 20_000)
    library = partial(peers.accuracy_calculator_metrics, x, y)
    oml = partial(peers.open_metric_learning_recall, x, y, RECALL_AT)
    found = [
        ranking("faiss' exact search, NumPy", partial(peers.faiss_metrics, x, y, RECALL_AT)),
        ranking("products, `topk`, NumPy", partial(peers.topk_metrics, x, y, RECALL_AT)),
        ranking('`AccuracyCalculator(k="max_bin_count")`', partial(library, k="max_bin_count")),
        ranking("open-metric-learning", oml, library="oml", note="Recall@K alone"),
    ]
    return Sides({"bgl": partial(measured, x, y)}, found, search_flop(x))


def recall_small(scale: Scale) -> Sides:
    """Peers that take every pair."""
    x, y = retrieval_set(scale, 2000)
    library = partial(peers.accuracy_calculator_metrics, x, y, None)
    own = partial(peers.torchmetrics_recall, x, y)
    note = "Recall@1 and R-precision alone"
    found = [
        ranking("`AccuracyCalculator(k=None)`, its default", library),
        ranking("torchmetrics' retrieval", own, library="torchmetrics", note=note),
    ]
    return Sides({"bgl": partial(measured, x, y)}, found, search_flop(x))


def recall_hyperbolic(scale: Scale) -> Sides:
    x, y = retrieval_set(scale, 20_000)
    ball = ToPoincareBall()(3 * x)
    distance = HyperbolicDistance()

    def check(_: Work) -> tuple[Values, Values]:
        rows = slice(0, 500)
        by_loop = peers.hyperbolic_row_loop(ball[rows].double(), y[rows], RECALL_AT, distance.c)
        return measured(ball[rows], y[rows], distance), by_loop

    cosine = Peer(
        "bgl with cosine",
        partial(measured, x, y),
        target=1 / 1.5,
        note="more work, so below 1: what the ball costs",
    )
    return Sides({"bgl": partial(measured, ball, y, distance)}, [cosine], check=check)
