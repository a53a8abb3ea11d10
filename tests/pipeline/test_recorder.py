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
from bgl.pipeline.recorder import (
    BINS,
    LastTest,
    Recorder,
    batch_graphs,
    first_right,
    fixed_batch,
    map_items,
    similarities,
)
from bgl.training import ProgressList, build_encoder, train
from bgl.visualization._frames import unpack_frames


@pytest.mark.parametrize(("method", "workers"), [("none", 0), ("dybgr", 1)])
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


@pytest.mark.parametrize("own", [True, False], ids=["own gallery", "another gallery"])
def test_rank_of_the_first_right_answer(own):
    """Against a sort of every query's similarities."""
    x, y = torch.randn(40, 5), torch.arange(40) % 7
    y[3] = 99  # no other image has this class
    gallery, others = (None, y) if own else (torch.randn(30, 5), torch.arange(30) % 5)
    queries = torch.tensor([0, 3, 11, 39])
    ranks = first_right(x, y, queries, gallery, others)
    for query, rank in zip(queries.tolist(), ranks.tolist(), strict=True):
        score = torch.cosine_similarity(x[query][None], x if own else gallery)
        order = [i for i in score.argsort(descending=True).tolist() if not (own and i == query)]
        right = [place for place, i in enumerate(order, start=1) if others[i] == y[query]]
        assert rank == (right[0] if right else 0)


def test_similarities_are_counted_by_class():
    x, y = torch.randn(300, 4), torch.arange(300) % 3
    expected = torch.zeros(2, BINS, dtype=torch.long)
    for i in range(300):
        score = torch.cosine_similarity(x[i][None], x[i + 1 :])
        for kind, chosen in enumerate((y[i + 1 :] == y[i], y[i + 1 :] != y[i])):
            expected[kind] += torch.histc(score[chosen], BINS, -1, 1).long()
    counted = similarities(x, y)
    assert counted.sum() == 300 * 299 // 2
    assert (counted - expected).abs().sum() <= 4  # a rounding error may move a pair to the next bin
