"""Embedding a dataset and measuring retrieval on it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from bgl.datasets import ImageDataset
from bgl.metrics import retrieval_metrics
from bgl.models import embed_batches

Metrics = dict[str, float]
RECALL_AT = (1, 2, 4, 8)
_RECALL_AT = {  # where the literature has other K
    "sop": (1, 10, 100, 1000),
    "inshop": (1, 10, 20, 30),
    "vehicleid": (1, 5),
}


def recall_at(dataset: str) -> tuple[int, ...]:
    """The K of Recall@K that are usual for a dataset.

    Example:
        >>> recall_at("sop"), recall_at("cub"), recall_at("vehicleid-large")
        ((1, 10, 100, 1000), (1, 2, 4, 8), (1, 5))
    """
    return _RECALL_AT.get(dataset.partition("-")[0], RECALL_AT)


def embed(
    model: nn.Module,
    dataset: ImageDataset,
    device: torch.device,
    batch_size: int = 256,
    workers: int = 0,
    on_batch: Callable[[int], None] = lambda _: None,
) -> dict[str, Tensor]:
    """Embed every image by itself, in evaluation mode.

    Args:
        model: A :class:`bgl.models.BatchGraphModel`; its mode is restored afterwards.
        dataset: Images with the evaluation transform.
        device: Where the model is.
        batch_size: Images at a time; the result does not depend on it.
        workers: Processes that load images.
        on_batch: Called with the number of images after each batch.

    Returns:
        ``{"backbone": [N, C], "head": [N, D]}`` in float32 on the CPU, in the dataset's order.
    """
    loader = DataLoader(dataset, batch_size, num_workers=workers)
    return embed_batches(model, (images for images, _ in loader), device, on_batch=on_batch)


def evaluate(
    vectors: dict[str, Tensor],
    labels: Tensor,
    k: tuple[int, ...],
    head_distance: Any = "cosine",
    gallery: dict[str, Tensor] | None = None,
    gallery_labels: Tensor | None = None,
) -> dict[str, Metrics]:
    """Retrieval metrics of each embedding; the backbone's by cosine, the head's by its own
    distance."""
    return {
        name: retrieval_metrics(
            vectors[name],
            labels,
            None if gallery is None else gallery[name],
            gallery_labels,
            k=k,
            distance=head_distance if name == "head" else "cosine",
        )
        for name in vectors
    }
