"""--log: what the trackers are told, read back from TensorBoard's own files."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker, filter_trackers
from explorer_runs import make_splits, small

from bgl.pipeline import tracking
from bgl.pipeline.recorder import Recorder
from bgl.pipeline.tracking import Trackers, check_trackers, log_picture
from bgl.training import ProgressList, train


def tracked(name: str, folder: Path) -> list[dict[str, Any]]:
    """The rows of a run that a tracker has listened to."""
    splits = make_splits()
    recorder = Recorder(folder, splits)
    trackers = Trackers([name], folder / "logs", recorder)
    result = train(small(), splits, folder, ProgressList(recorder, trackers))
    trackers.finish()
    return result.history


def test_tensorboard(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    history = tracked("tensorboard", tmp_path)
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
    expected = [(row["epoch"], pytest.approx(row["loss"], rel=1e-5)) for row in history]
    assert logged == expected
    assert images == ["graph/picture"]
    assert [e.step for e in events.Images("graph/picture")] == [0, 1, 2]
    assert events.Images("graph/picture")[0].encoded_image_string.startswith(b"\x89PNG")


class Notebook(GeneralTracker):
    """A tracker of one's own; accelerate makes it from the name of the project."""

    name = "notebook"
    requires_logging_directory = False
    opened: ClassVar[list[Notebook]] = []

    def __init__(self, project: str) -> None:
        super().__init__()
        self.project = project
        self.config: dict[str, Any] = {}
        self.scalars: dict[int, dict[str, float]] = {}
        self.images: dict[int, Any] = {}
        self.closed = False
        self.opened.append(self)

    @property
    def tracker(self) -> Notebook:
        return self

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self.config = values

    def log(self, values: dict[str, float], step: int | None = None, **more: Any) -> None:
        self.scalars[step or 0] = values

    def log_images(self, values: dict[str, Any], step: int | None = None) -> None:
        self.images[step or 0] = values["graph/picture"]

    def finish(self) -> None:
        self.closed = True


def test_any_registered_tracker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The way of wandb, mlflow and the others, with a tracker that needs no server."""
    monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, "notebook", Notebook)
    try:
        filter_trackers(["notebook"])
    except ValueError:
        pytest.skip("this accelerate takes no trackers but its own")
    history = tracked("notebook", tmp_path)
    (book,) = Notebook.opened
    assert (book.project, book.closed) == ("training", True)
    assert book.config["dybgr.k"] == 3
    assert book.config["method"] == "dybgr"
    logged = [values["loss/loss"] for values in book.scalars.values()]
    assert logged == [row["loss"] for row in history]
    assert book.scalars.keys() == {1, 2}
    assert book.images.keys() == {0, 1, 2}
    assert book.images[2][0].dtype == np.uint8


@pytest.mark.parametrize(
    ("name", "listed"), [("wandb", True), ("swanlab", True), ("aim", False), ("clearml", False)]
)
def test_pictures_in_the_form_of_each_library(name: str, listed: bool) -> None:
    book = Notebook("training")
    book.name = name
    picture = np.zeros((4, 6, 3), np.uint8)
    log_picture(book, picture, 3)
    assert isinstance(book.images[3], list) == listed
    assert (book.images[3][0] if listed else book.images[3]) is picture


def test_trackers_without_pictures() -> None:
    log_picture(GeneralTracker(_blank=True), np.zeros((4, 6, 3), np.uint8), 0)


def test_unknown_trackers_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "get_available_trackers", lambda: ["tensorboard"])
    check_trackers(["tensorboard"])
    with pytest.raises(ValueError, match="'tensorbored'"):
        check_trackers(["tensorbored"])
    for name in ("wandb", "aim"):
        with pytest.raises(ValueError, match=f"pip install {name}"):
            check_trackers([name])
