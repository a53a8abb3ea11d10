"""--log: what the trackers are told, read back from TensorBoard's own files."""

from __future__ import annotations

from pathlib import Path

import pytest
from explorer_runs import make_splits
from test_explorer import small

from bgl.training import Several, train
from bgl.visualization.recorder import Recorder
from bgl.visualization.tracking import Trackers, check_trackers


def test_tensorboard(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    splits = make_splits()
    recorder = Recorder(tmp_path, splits)
    trackers = Trackers(["tensorboard"], tmp_path / "logs", recorder)
    result = train(small(), splits, tmp_path, Several(recorder, trackers))
    trackers.finish()
    events = EventAccumulator(str(tmp_path / "logs" / "training"))
    events.Reload()
    scalars, images = events.Tags()["scalars"], events.Tags()["images"]
    assert {
        "loss/loss",
        "loss/loss_graph",
        "val/backbone_map@r",
        "graph/same_class_edges",
        "graph/mean_degree",
        "graph/weight_entropy",
    } <= set(scalars)
    logged = [(e.step, e.value) for e in events.Scalars("loss/loss")]
    expected = [(row["epoch"], pytest.approx(row["loss"], rel=1e-5)) for row in result.history]
    assert logged == expected
    assert images == ["graph/picture"]
    assert [e.step for e in events.Images("graph/picture")] == [0, 1, 2]
    assert events.Images("graph/picture")[0].encoded_image_string.startswith(b"\x89PNG")


def test_unknown_trackers_are_named() -> None:
    check_trackers(["tensorboard"])
    with pytest.raises(ValueError, match="'tensorbored'"):
        check_trackers(["tensorbored"])
    with pytest.raises(ValueError, match="not"):
        Trackers(["clearml"], ".")
