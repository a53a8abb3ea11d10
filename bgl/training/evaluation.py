"""Embedding a dataset and measuring retrieval on it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset

from bgl._checks import check_int
from bgl.datasets import ImageDataset, Splits, recall_at
from bgl.images import eval_transform
from bgl.metrics import retrieval_metrics
from bgl.models import BackboneInfo, Encoder, embed_batches
from bgl.training.build import head_distance
from bgl.training.config import TrainConfig
from bgl.training.distributed import gather_rows
from bgl.training.interruption import Interruption
from bgl.training.loading import TIMEOUT, num_workers, worker_seed
from bgl.training.progress import Progress

Metrics = dict[str, float]


def embed(
    model: nn.Module,
    dataset: ImageDataset | Subset[Any],
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
    loader: DataLoader[Any] = DataLoader(
        dataset,
        check_int(batch_size, "batch_size", 1),
        num_workers=workers,
        timeout=TIMEOUT if workers else 0.0,
        generator=worker_seed(0),  # leaves the global generators alone
    )
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


@dataclass
class View:
    """A model with all it takes to look at a dataset through it, in evaluation mode.

    Args:
        model: A :class:`bgl.models.BatchGraphModel`.
        config: What is trained.
        info: Of the model's backbone.
        accelerator: Device, precision, processes.
        progress: Told about items and measurements.
        interruption: Looked at after every batch that all processes embed together.
        resumed: Whether the training goes on from a checkpoint.
    """

    model: nn.Module
    config: TrainConfig
    info: BackboneInfo
    accelerator: Accelerator
    progress: Progress
    interruption: Interruption = field(default_factory=Interruption)
    resumed: bool = False

    def embed(self, dataset: ImageDataset, alone: bool = False) -> dict[str, Tensor]:
        """Backbone and head output of every image, with the evaluation transform.

        All processes must call it together: each embeds a share, and all get the whole. With
        ``alone``, this process embeds all of it without the others.
        """
        config, info, device = self.config, self.info, self.accelerator.device
        processes = 1 if alone else self.accelerator.num_processes
        share = -(-len(dataset) // processes)
        first = 0 if alone else share * self.accelerator.process_index
        # shares of one size, so that processes stay in step: the last image fills up the last
        own = [min(i, len(dataset) - 1) for i in range(first, first + share)]
        transform = eval_transform(config.image_size, info.mean, info.std, config.resize)

        def on_batch(images: int) -> None:
            self.progress.advance(images)
            if not alone:
                self.interruption.check(device)

        self.progress.start(f"embedding {len(dataset)} images", share)
        with self.accelerator.autocast():
            vectors = embed(
                self.model,
                Subset(dataset.with_transform(transform), own),
                device,
                workers=num_workers(config.workers, dataset),
                on_batch=on_batch,
            )
        if processes == 1:
            return vectors
        sizes = [share] * processes
        return {
            name: gather_rows(x.to(device), sizes)[: len(dataset)].cpu()
            for name, x in vectors.items()
        }

    def measure(
        self, queries: ImageDataset, gallery: ImageDataset | None = None
    ) -> dict[str, Metrics]:
        """Retrieval metrics of each embedding."""
        vectors = self.embed(queries)
        others = None if gallery is None else self.embed(gallery)
        self.progress.measured(queries, vectors, others)
        return evaluate(
            vectors,
            queries.labels,
            recall_at(self.config.dataset),
            head_distance(self.config),
            others,
            None if gallery is None else gallery.labels,
        )


def evaluate_encoder(encoder: Encoder, splits: Splits, batch_size: int = 256) -> dict[str, Metrics]:
    """Retrieval metrics of a trained model on the test classes of a dataset, for the backbone's
    and the head's embeddings, with the K that are usual for it."""
    vectors = {
        part: embed(
            encoder.model,
            dataset.with_transform(encoder.transform),
            encoder.device,
            batch_size,
        )
        for part, dataset in splits.parts().items()
        if part in ("test", "gallery")
    }
    return evaluate(
        vectors["test"],
        splits.test.labels,
        recall_at(splits.name),
        encoder.distance,
        vectors.get("gallery"),
        None if splits.gallery is None else splits.gallery.labels,
    )
