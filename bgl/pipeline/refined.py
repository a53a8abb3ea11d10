"""Rows of a run for refined embeddings: transductive, and marked so."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bgl import models
from bgl._io import write_text
from bgl._neighbors import nearest
from bgl.datasets import Splits, recall_at
from bgl.metrics import retrieval_metrics
from bgl.models import Encoder, ModelConfig
from bgl.models.storage import empty_model
from bgl.pipeline.arrays import RECORD_FILE, REFINED_FILE, read_or_note, write_arrays
from bgl.pipeline.comparison import OTHER_EPOCHS
from bgl.pipeline.recorder import Vectors, kept
from bgl.pipeline.results import Row, compared, read_record
from bgl.refinement import refine
from bgl.training import Evaluator, Progress, TrainConfig, make_accelerator
from bgl.training.distributed import broadcast_module, on_first_process

K = 7  # refine's default, lowered for tiny test sets


def refined_rows(
    rows: list[Row],
    config: TrainConfig,
    folder: Path,
    splits: Splits,
    progress: Progress | None = None,
    vectors: Vectors | None = None,
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
    if vectors is None:
        vectors = _embed(config, folder, splits, accelerator.device, progress or Progress())
    if not accelerator.is_main_process:
        return []
    embedding = compared([row["embedding"] for row in rows])
    queries, others = vectors[0].to(accelerator.device), vectors[1]
    found: Tensor | None = None
    if others is None:
        queries = refine(queries, k=min(K, len(queries) - 1))
    else:
        k = min(K, len(others) - 1)
        found, queries = refine(others.to(accelerator.device), queries, k=k)
    labels = None if splits.gallery is None else splits.gallery.labels
    cutoffs = recall_at(splits.name)
    metrics = retrieval_metrics(queries, splits.test.labels, found, labels, k=cutoffs)
    _write_answers(folder, queries.cpu(), None if found is None else found.cpu())
    result: list[Row] = [
        {**chosen_epoch_only(row), "metrics": metrics, "transductive": True}
        for row in rows
        if row["embedding"] == embedding
    ]
    write_text(finished, json.dumps(result, indent=1))
    return result


def _embed(
    config: TrainConfig, folder: Path, splits: Splits, device: torch.device, progress: Progress
) -> Vectors:
    """Embed the test classes with the model that a run has stored; each process a share."""
    loaded: list[Encoder] = []  # in the first process

    def load() -> ModelConfig:
        loaded.append(models.load(folder, device))
        return loaded[0].config

    stored = on_first_process(load)
    encoder = loaded[0] if loaded else Encoder(empty_model(stored), stored, device)
    broadcast_module(encoder.model)
    evaluator = Evaluator(encoder, workers=config.workers, progress=progress)
    gallery = splits.gallery
    return (
        kept(evaluator.embed(splits.test)),
        None if gallery is None else kept(evaluator.embed(gallery)),
    )


def chosen_epoch_only(row: Row) -> Row:
    """Drop the metrics of other epochs, whose models were not kept."""
    kept = row.copy()
    for part in OTHER_EPOCHS:
        kept.pop(part, None)
    return kept


def _write_answers(folder: Path, queries: Tensor, gallery: Tensor | None) -> None:
    """Write the nearest images of the queries whose plain answers the page shows."""
    recorded = read_or_note(folder / RECORD_FILE, [])
    if "nearest" not in recorded:
        return
    rows, k = recorded["queries"], recorded["nearest"].shape[1]
    answers = nearest(queries, torch.from_numpy(rows), k, gallery).numpy().astype(np.int32)
    write_arrays(folder / REFINED_FILE, {"queries": rows, "nearest": answers})
