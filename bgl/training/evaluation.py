"""Embedding datasets and measuring retrieval on them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from bgl.datasets import RECALL_AT, ImageDataset, Splits, recall_at
from bgl.images import ImageCache
from bgl.images.loading import num_workers
from bgl.metrics.retrieval import Ranking
from bgl.models import Encoder
from bgl.training.distributed import gather_rows, num_processes, process_index, shares
from bgl.training.interruption import Interruption
from bgl.training.progress import Progress, Vectors

Metrics = dict[str, float]


def evaluate(
    vectors: Vectors,
    labels: Tensor,
    k: tuple[int, ...],
    head_distance: Any = "cosine",
    gallery: Vectors | None = None,
    gallery_labels: Tensor | None = None,
) -> dict[str, Metrics]:
    """Measure retrieval by each embedding: the head's by its distance, others by cosine.

    Processes that train together must call it together: each ranks a share of the queries.
    """
    metrics = {}
    for name, x in vectors.items():
        ranking = Ranking(
            x,
            labels,
            None if gallery is None else gallery[name],
            gallery_labels,
            k=k,
            distance=head_distance if name == "head" else "cosine",
        )
        parts = shares(len(ranking.counted), num_processes())
        own = parts[process_index()]
        results = ranking.measure(ranking.counted[own.start : own.stop])
        metrics[name] = ranking.averages(gather_rows(results, [len(part) for part in parts]))
    return metrics


@dataclass
class Evaluator:
    """Embeds and measures datasets with an encoder, for runs and for stored models alike.

    Processes that train together must call its methods together: each embeds a share, and all
    get the whole.

    Args:
        encoder: The model.
        k: The K of Recall@K.
        workers: Loading processes of each process; -1: the default of
            :func:`bgl.images.loading.num_workers`.
        batch_size: Images at a time.
        progress: Told about items and measurements.
        interruption: Looked at after every batch.
        cache: Keeps decoded files.
    """

    encoder: Encoder
    k: tuple[int, ...] = RECALL_AT
    workers: int = -1
    batch_size: int = 256
    progress: Progress = field(default_factory=Progress)
    interruption: Interruption = field(default_factory=Interruption)
    cache: ImageCache | None = None

    def embed(self, data: ImageDataset) -> Vectors:
        """Embed every image: ``{"backbone": [N, C], "head": [N, D], …}``, float32.

        They stay on a GPU, where they are measured.
        """
        processes, device = num_processes(), self.encoder.device
        share = -(-len(data) // processes)
        # listeners, who know the data by their identity, are told of those without the cache
        own = data if self.cache is None else data.with_cache(self.cache)
        if processes > 1:
            first = share * process_index()
            # shares of one size keep processes in step: the last image fills up the last one
            own = own.subset([min(i, len(data) - 1) for i in range(first, first + share)])

        def on_batch(images: int) -> None:
            self.progress.advance(images)
            self.interruption.check()

        self.progress.start(f"embedding {len(data)} images", share)
        workers = num_workers(self.workers, isinstance(data.images, Tensor))
        vectors = self.encoder.embed(
            own,
            self.batch_size,
            output=None,
            workers=workers,
            on_batch=on_batch,
            on_device=device.type == "cuda",
        )
        if processes == 1:
            return vectors
        return {
            name: gather_rows(x, [share] * processes)[: len(data)] for name, x in vectors.items()
        }

    def measure(
        self,
        queries: ImageDataset,
        gallery: ImageDataset | None = None,
        vectors: Vectors | None = None,
    ) -> dict[str, Metrics]:
        """Measure retrieval by each embedding; ``vectors`` are the queries', if they are known."""
        vectors = self.embed(queries) if vectors is None else vectors
        others = None if gallery is None else self.embed(gallery)
        self.progress.measured(queries, vectors, others)
        return evaluate(
            vectors,
            queries.labels,
            self.k,
            self.encoder.config.distance_of("head"),
            others,
            None if gallery is None else gallery.labels,
        )


def evaluate_encoder(
    encoder: Encoder, splits: Splits, batch_size: int = 256, workers: int = 0
) -> dict[str, Metrics]:
    """Measure a trained model on the test classes of a dataset, as its run did.

    Args:
        encoder: The model.
        splits: The data; K of Recall@K are those usual for it.
        batch_size: Images at a time.
        workers: Loading processes; -1: one per core, at most 16.

    Returns:
        Retrieval metrics by embedding: "backbone", "head" and, if the model has one, "readout".
    """
    evaluator = Evaluator(encoder, recall_at(splits.name), workers, batch_size)
    return evaluator.measure(splits.test, splits.gallery)
