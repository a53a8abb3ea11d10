"""Embedding a dataset and measuring retrieval on it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from bgl.datasets import ImageDataset
from bgl.metrics import retrieval_metrics

Metrics = dict[str, float]
RECALL_AT = (1, 2, 4, 8)


@torch.inference_mode()
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
    was_training = model.training
    model.eval()
    parts: dict[str, list[Tensor]] = {"backbone": [], "head": []}
    for images, _ in loader:
        images = images.to(device).contiguous(memory_format=torch.channels_last)
        output = model(images)
        parts["backbone"].append(output.features.float().cpu())
        parts["head"].append(output.embeddings.float().cpu())
        on_batch(len(images))
    model.train(was_training)
    return {name: torch.cat(chunks) for name, chunks in parts.items()}


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
