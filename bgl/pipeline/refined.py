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
from bgl.pipeline.arrays import RECORD_FILE, REFINED_FILE, read_or_note, write_arrays
from bgl.pipeline.comparison import OTHER_EPOCHS
from bgl.pipeline.results import Row, read_record
from bgl.refinement import refine
from bgl.training import Evaluator, Progress, TrainConfig, make_accelerator

K = 7  # refine's default, lowered for tiny test sets


def refined_rows(
    rows: list[Row],
    config: TrainConfig,
    folder: Path,
    splits: Splits,
    progress: Progress | None = None,
) -> list[Row]:
    """Measure the model of a run once more, with its embeddings refined without labels: those of
    its readout or, where it has none, the backbone's.

    The embeddings are those that the run measured, computed on its device; all processes that
    trained together must call this together, and the first gets the rows. Answers to the queries
    that the folder's ``explorer.npz`` keeps go into ``refined.npz`` there; the rows into
    ``refined.json``, from where they are taken the next time.

    Args:
        rows: The run's rows.
        config: What was trained.
        folder: Where its model is.
        splits: The data; the test classes are refined, or their gallery, and they against it.
        progress: Told about the images embedded.
    """
    finished = folder / "refined.json"
    if finished.exists():
        return read_record(finished, list[Row], "remove it to refine again")
    accelerator = make_accelerator(config.device)
    encoder = models.load(folder, accelerator.device)
    evaluator = Evaluator(encoder, workers=config.workers, progress=progress or Progress())
    embedding = "backbone" if encoder.model.readout is None else "readout"
    test, gallery = splits.test, splits.gallery
    queries = evaluator.embed(test)[embedding]
    others = None if gallery is None else evaluator.embed(gallery)[embedding]
    if not accelerator.is_main_process:
        return []
    found: Tensor | None = None
    if others is None:
        queries = refine(queries, k=min(K, len(queries) - 1))
    else:
        found, queries = refine(others, queries, k=min(K, len(others) - 1))
    labels = None if gallery is None else gallery.labels
    cutoffs = recall_at(splits.name)
    metrics = retrieval_metrics(queries, test.labels, found, labels, k=cutoffs)
    _write_answers(folder, queries, found)
    result: list[Row] = [
        {**chosen_epoch_only(row), "metrics": metrics, "transductive": True}
        for row in rows
        if row["embedding"] == embedding
    ]
    write_text(finished, json.dumps(result, indent=1))
    return result


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
