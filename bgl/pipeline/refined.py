"""Rows of a run for refined embeddings: transductive, and marked so."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bgl import models
from bgl._io import write_text
from bgl._neighbors import nearest
from bgl._records import read_record
from bgl.datasets import Splits, recall_at
from bgl.forecasting import Forecast, Setting, forecast
from bgl.images import BrokenImageError
from bgl.images.finding import find_images
from bgl.images.loading import num_workers
from bgl.metrics import retrieval_metrics
from bgl.models import Encoder, ModelConfig
from bgl.models.storage import empty_model
from bgl.pipeline.arrays import RECORD_FILE, REFINED_FILE, read_or_note, write_arrays
from bgl.pipeline.comparison import OTHER_EPOCHS
from bgl.pipeline.recorder import Tested, kept
from bgl.pipeline.results import Row, compared
from bgl.refinement import refine
from bgl.training import Evaluator, Progress, TrainConfig, make_accelerator
from bgl.training.distributed import broadcast_module, on_first_process

Metrics = dict[str, float]

K = 7  # refine's default, lowered for tiny test sets


def refined_rows(
    rows: list[Row],
    config: TrainConfig,
    folder: Path,
    splits: Splits,
    progress: Progress | None = None,
    vectors: Tested | None = None,
) -> list[Row]:
    """Measure the model of a run once more, with its embeddings refined without labels: those of
    its readout or, where it has none, the backbone's.

    All processes that trained together must call this together; the first gets the rows. Answers
    to the queries that the folder's ``explorer.npz`` keeps go into ``refined.npz`` there; the rows
    into ``refined.json``, from where they are taken the next time.

    Args:
        rows: The run's rows.
        config: What was trained.
        folder: Where its model is.
        splits: The data; the test classes are refined, or their gallery, and they against it.
        progress: Told about the images embedded.
        vectors: What the run has measured; None if it was finished before: the stored model embeds
            the images again. Either on all processes.
    """
    finished = folder / "refined.json"

    def read() -> list[Row] | None:
        if not finished.exists():
            return None
        return read_record(finished, list[Row], "remove it to refine again")

    earlier = on_first_process(read)
    if earlier is not None:
        return earlier
    accelerator = make_accelerator(config.device, config.deterministic)
    device = accelerator.device
    if vectors is None:
        vectors = _embed(config, folder, splits, device, progress or Progress())
    if not accelerator.is_main_process:
        return []
    embedding = compared([row["embedding"] for row in rows])
    queries, gallery = vectors
    refined = refine_as_used((queries.to(device), None if gallery is None else gallery.to(device)))
    metrics = _measure(refined, splits)
    _write_answers(folder, refined)
    result: list[Row] = [
        {**chosen_epoch_only(row), "metrics": metrics, "transductive": True}
        for row in rows
        if row["embedding"] == embedding
    ]
    write_text(finished, json.dumps(result, indent=1))
    return result


def measure_refined(
    encoder: Encoder,
    splits: Splits,
    batch_size: int = 256,
    workers: int = 0,
    **options: Any,
) -> dict[str, Metrics]:
    """Measure a model on the test classes as it is, and with its embeddings refined.

    Args:
        encoder: The model; its readout is refined, or its backbone where it has none.
        splits: The data; K of Recall@K are those usual for it.
        batch_size: Images at a time.
        workers: Loading processes; -1: one per core, at most 16.
        options: Of :func:`bgl.refine`.

    Returns:
        Retrieval metrics of "plain" and "refined"; the latter are transductive.
    """
    evaluator = Evaluator(encoder, workers=workers, batch_size=batch_size)
    plain = embed_to_refine(evaluator, splits)
    refined = refine_as_used(plain, **options)
    return {"plain": _measure(plain, splits), "refined": _measure(refined, splits)}


def check_refinement(
    encoder: Encoder,
    data: Splits | Sequence[str | Path],
    batch_size: int = 256,
    workers: int = 0,
    **setting: Any,
) -> Forecast:
    """Estimate without labels what refining the embeddings of some images will change.

    Args:
        encoder: The model.
        data: A dataset, of which the gallery or else the test classes are looked at; or image
            files and folders.
        batch_size: Images at a time.
        workers: Loading processes; -1: one per core, at most 16.
        setting: Of :func:`bgl.forecast`; ``k`` is lowered for few images.

    Raises:
        ValueError: As :func:`bgl.forecast`; with a note on the files that cannot be read.
    """
    if isinstance(data, Splits):
        queries, gallery = embed_to_refine(
            Evaluator(encoder, workers=workers, batch_size=batch_size), data
        )
        x = queries if gallery is None else gallery
    else:
        files = find_images(data)
        broken: list[BrokenImageError] = []
        x = encoder.embed(
            files,
            batch_size,
            compared(encoder.config.embeddings),
            num_workers(workers, False),
            on_broken=lambda _, error: broken.append(error),
        )
        if broken:
            warnings.warn(f"{len(broken)} image(s) left out; the first: {broken[0]}", stacklevel=2)
    return forecast(x, **Setting(**setting).lowered(len(x))._asdict())


def embed_to_refine(evaluator: Evaluator, splits: Splits) -> Tested:
    """Embed the test classes and their gallery: the embedding of the model that is refined."""
    gallery = splits.gallery
    return (
        kept(evaluator.embed(splits.test)),
        None if gallery is None else kept(evaluator.embed(gallery)),
    )


def refine_as_used(tested: Tested, k: int = K, **options: Any) -> Tested:
    """Refine the gallery and the queries against it; without a gallery the queries are one."""
    queries, gallery = tested
    if gallery is None:
        return refine(queries, k=min(k, len(queries) - 1), **options), None
    gallery, queries = refine(gallery, queries, k=min(k, len(gallery) - 1), **options)
    return queries, gallery


def _measure(vectors: Tested, splits: Splits) -> Metrics:
    labels = None if splits.gallery is None else splits.gallery.labels
    cutoffs = recall_at(splits.name)
    return retrieval_metrics(vectors[0], splits.test.labels, vectors[1], labels, k=cutoffs)


def _embed(
    config: TrainConfig, folder: Path, splits: Splits, device: torch.device, progress: Progress
) -> Tested:
    """Embed the test classes with the model that a run has stored; each process a share."""
    loaded: list[Encoder] = []  # in the first process

    def load() -> ModelConfig:
        loaded.append(models.load(folder, device))
        return loaded[0].config

    stored = on_first_process(load)
    encoder = loaded[0] if loaded else Encoder(empty_model(stored), stored, device)
    broadcast_module(encoder.model)
    return embed_to_refine(Evaluator(encoder, workers=config.workers, progress=progress), splits)


def chosen_epoch_only(row: Row) -> Row:
    """Drop the metrics of other epochs, whose models were not kept."""
    kept = row.copy()
    for part in OTHER_EPOCHS:
        kept.pop(part, None)
    return kept


def _write_answers(folder: Path, refined: Tested) -> None:
    """Write the nearest images of the queries whose plain answers the page shows."""
    recorded = read_or_note(folder / RECORD_FILE, [])
    if "nearest" not in recorded:
        return
    rows, k = recorded["queries"], recorded["nearest"].shape[1]
    queries, gallery = refined
    answers = nearest(queries, torch.from_numpy(rows), k, gallery).cpu().numpy().astype(np.int32)
    write_arrays(folder / REFINED_FILE, {"queries": rows, "nearest": answers})
