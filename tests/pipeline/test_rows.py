"""Rows of a run: what is measured without training, and refined."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from tiny_training import make_splits, part, tiny

import bgl.pipeline.rows as rows_of_a_run
from bgl.pipeline.recorder import LastTest
from bgl.pipeline.refined import refined_rows
from bgl.pipeline.rows import baseline_rows, pixel_rows
from bgl.training import Evaluator, Progress, train


def test_all_rows_have_the_cutoffs_of_the_dataset(tmp_path: Path) -> None:
    splits = dataclasses.replace(make_splits(), name="inshop")
    config = tiny(dataset="inshop", epochs=1)
    rows = [*pixel_rows(config, splits), *baseline_rows(config, splits, Progress())]
    metrics = train(config, splits, tmp_path).metrics
    rows += [{"method": "none", "seed": 0, "embedding": e, "metrics": metrics[e]} for e in metrics]
    found = [*rows, *refined_rows(rows, config, tmp_path, splits)]
    refined = [(row["method"], row["embedding"]) for row in found[-2:]]
    assert refined == [("untrained", "readout"), ("none", "readout")]
    for row in found:
        cutoffs = [name for name in row["metrics"] if name.startswith("recall")]
        assert cutoffs == [f"recall@{k}" for k in (1, 10, 20, 30)]


@pytest.mark.parametrize("gallery", [False, True])
def test_refined_rows_take_the_vectors_that_were_measured(tmp_path: Path, gallery: bool) -> None:
    """They are those of the stored model, which embeds the images if nobody else has."""
    splits = make_splits()
    if gallery:
        splits = dataclasses.replace(splits, gallery=part("test", 4, 5, 60))
    config, tested = tiny(epochs=1), LastTest(splits)
    train(config, splits, tmp_path, tested)
    row: rows_of_a_run.Row = {"method": "none", "seed": 0, "embedding": "backbone", "metrics": {}}
    found = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Evaluator, "embed", None)
        found.append(refined_rows([row], config, tmp_path, splits, vectors=tested.vectors))
    (tmp_path / "refined.json").unlink()
    found.append(refined_rows([row], config, tmp_path, splits))
    assert found[0] == found[1]
    assert found[0][0]["metrics"]["num_queries"] == 16


@pytest.mark.parametrize(("few", "there"), [(16, True), (15, False)])
@pytest.mark.parametrize("forced", [None, True, False])
def test_raw_pixels_are_measured_where_they_are_few_or_wanted(
    monkeypatch: pytest.MonkeyPatch, few: int, there: bool, forced: bool | None
) -> None:
    monkeypatch.setattr(rows_of_a_run, "FEW_IMAGES", few)
    rows = pixel_rows(tiny(), make_splits(), forced)
    assert [row["method"] for row in rows] == ["pixels"] * (there if forced is None else forced)
