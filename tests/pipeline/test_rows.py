"""Rows of a run: what is measured without training, and refined."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from tiny_training import make_splits, tiny

from bgl.pipeline.refined import refined_rows
from bgl.pipeline.rows import baseline_rows
from bgl.training import Progress, train


def test_all_rows_have_the_cutoffs_of_the_dataset(tmp_path: Path) -> None:
    splits = dataclasses.replace(make_splits(), name="inshop")
    config = tiny(dataset="inshop", epochs=1)
    rows = baseline_rows(config, splits, Progress())
    metrics = train(config, splits, tmp_path).metrics
    rows += [{"method": "none", "seed": 0, "embedding": e, "metrics": metrics[e]} for e in metrics]
    found = [*rows, *refined_rows(rows, config, tmp_path, splits)]
    refined = [(row["method"], row["embedding"]) for row in found[-2:]]
    assert refined == [("untrained", "readout"), ("none", "readout")]
    for row in found:
        cutoffs = [name for name in row["metrics"] if name.startswith("recall")]
        assert cutoffs == [f"recall@{k}" for k in (1, 10, 20, 30)]
