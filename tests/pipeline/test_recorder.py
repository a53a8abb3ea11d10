"""What a training remembers for the explorer page."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from explorer_runs import (
    make_splits,
    small,
)
from safetensors.torch import load_file

from bgl.pipeline.arrays import read_arrays
from bgl.pipeline.recorder import LastTest, Recorder, batch_graphs, fixed_batch, map_items
from bgl.training import ProgressList, build_encoder, train
from bgl.visualization._frames import unpack_frames


@pytest.mark.parametrize("method", ["none", "dybgr"])
@pytest.mark.parametrize("workers", [0, 1])
def test_recorder_changes_nothing(method, workers, tmp_path):
    splits = make_splits()
    config = small(method=method, workers=workers)
    train(config, splits, tmp_path / "plain")
    recorder = Recorder(tmp_path / "watched", splits)
    train(config, splits, tmp_path / "watched", ProgressList(recorder))
    recorder.finish()
    for name in ("model.safetensors", "embeddings.safetensors"):
        one, other = (load_file(tmp_path / folder / name) for folder in ("plain", "watched"))
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one)
    rows = [
        [
            line.rpartition(",")[0]
            for line in (tmp_path / f / "metrics.csv").read_text().splitlines()
        ]
        for f in ("plain", "watched")
    ]
    assert rows[0] == rows[1]


def test_small_batch_of_the_page_brings_no_warning(recwarn):
    """Its size is not the user's choice."""
    config = small(options={"dybgr": {"k": 30}})
    graphs = batch_graphs(build_encoder(config)[0], make_splits().test, list(range(8)))
    assert graphs[0].num_edges == 8 * 6
    assert not [w for w in recwarn if "needs at least" in str(w.message)]


def test_recorder_goes_on_after_an_interruption(tmp_path):
    splits = make_splits()

    class Stop(Recorder):
        def epoch(self, row: dict[str, Any]) -> None:
            super().epoch(row)
            if row["epoch"] == 1:
                raise KeyboardInterrupt

    whole, part = tmp_path / "whole", tmp_path / "part"
    train(small(), splits, whole, Recorder(whole, splits))
    with pytest.raises(KeyboardInterrupt):
        train(small(), splits, part, Stop(part, splits))
    train(small(), splits, part, Recorder(part, splits))
    frames = [unpack_frames(read_arrays(folder / "explorer.npz")) for folder in (whole, part)]
    assert len(frames[0]) == len(frames[1]) == 6
    for one, other in zip(*frames, strict=True):
        for field in dataclasses.fields(one):
            np.testing.assert_array_equal(getattr(one, field.name), getattr(other, field.name))


def test_listeners_know_the_data_of_a_run_with_a_cache(tmp_path):
    splits = make_splits()
    recorder, tested = Recorder(tmp_path, splits), LastTest(splits)
    config = small(cache=str(tmp_path / "cache"))
    train(config, splits, tmp_path, ProgressList(recorder, tested))
    assert recorder.vectors is not None
    assert tested.vectors is not None


def test_fixed_batch():
    labels = torch.tensor([0] * 5 + [1] + [2] * 4 + [3] * 4)
    assert fixed_batch(labels, 8, 4) == [0, 1, 2, 3, 10, 11, 12, 13]
    assert fixed_batch(torch.tensor([0, 1]), 8, 4) == [0, 1]


def test_map_items_are_whole_classes():
    labels = torch.arange(3000) % 300
    items = map_items(labels)
    assert len(items) == 1200
    assert labels[items].bincount(minlength=300).unique().tolist() == [0, 10]
