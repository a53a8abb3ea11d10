"""Listen to the training loop with TensorBoard or another tracker that accelerate knows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker, get_available_trackers
from accelerate.utils import LoggerType
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch_geometric.data import Data

from bgl.pipeline.picture import graph_figure
from bgl.pipeline.recorder import Recorder
from bgl.training import Progress, TrainingRun


def check_trackers(names: Sequence[str]) -> None:
    """Raise unless accelerate knows all these trackers and their packages are installed.

    It knows those of its own, and your own after ``accelerate.tracking.register_tracker_class``.

    Example:
        >>> check_trackers([])
    """
    missing = set(LoggerType.list()) - {str(name) for name in get_available_trackers()}
    for name in names:
        if name not in LOGGER_TYPE_TO_CLASS:
            known = ", ".join(LOGGER_TYPE_TO_CLASS)
            raise ValueError(f"Expected argument `log` to be one of {known}, got {name!r}")
        if name in missing:
            raise ValueError(
                "Expected argument `log` to be a tracker whose package is installed, but "
                f"{name!r} is not: `pip install {name}`"
            )


class Trackers(Progress):
    """Logs losses, metrics, graph statistics and the picture of the graph after every epoch.

    Args:
        names: Trackers, as accelerate calls them: "tensorboard", "wandb", "mlflow", ...
        folder: Where trackers that write files put them; TensorBoard's go to ``folder/training``.
        recorder: Whose graphs are drawn, after the epochs that it records; it must be told of an
            epoch before this listener is.
    """

    def __init__(self, names: Sequence[str], folder: str | Path, recorder: Recorder) -> None:
        self.names = list(names)
        self.folder = Path(folder)
        self.recorder = recorder
        self.trackers: list[GeneralTracker] = []

    def begin(self, run: TrainingRun, epochs: int) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        accelerator = Accelerator(
            cpu=run.encoder.device.type == "cpu",
            log_with=self.names,
            project_dir=str(self.folder),
        )
        accelerator.init_trackers("training", config=flat(run.config.to_dict()))
        self.trackers = accelerator.trackers
        if not run.resumed:
            self._picture(0)

    def epoch(self, row: dict[str, Any]) -> None:
        step = int(row["epoch"])
        values = {group(name): value for name, value in row.items() if name != "epoch"}
        for tracker in self.trackers:
            tracker.log(values, step=step)
        self._picture(step)

    def finish(self) -> None:
        """Close the trackers."""
        for tracker in self.trackers:
            tracker.finish()  # not end_training, which would part the processes as well

    def _picture(self, epoch: int) -> None:
        """Draw the last graph of this epoch, if it was recorded."""
        recorder = self.recorder
        frames = [frame for frame in recorder.frames if frame.epoch == epoch]
        if not frames:
            return
        frame = frames[-1]
        data = Data(
            edge_index=torch.from_numpy(np.stack([frame.source, frame.target]).astype(np.int64)),
            edge_weight=torch.from_numpy(frame.weight),
            y=recorder.data.labels[recorder.batch],
            num_nodes=len(recorder.batch),
        )
        figure = graph_figure(data, recorder.data, recorder.batch, max_edges=300)
        figure.axes[0].set_title(f"epoch {epoch}")
        picture = pixels(figure)
        plt.close(figure)
        for tracker in self.trackers:
            log_picture(tracker, picture, epoch)


def log_picture(tracker: GeneralTracker, picture: np.ndarray, step: int) -> None:
    """Log a picture [H, W, 3] in the form that the tracker's own library takes; some take none."""
    log_images: Any = getattr(tracker, "log_images", None)
    if log_images is None:
        return
    if tracker.name == "tensorboard":
        log_images({"graph/picture": picture[None]}, step=step, dataformats="NHWC")
    elif tracker.name in ("aim", "clearml"):
        log_images({"graph/picture": picture}, step=step)
    else:
        log_images({"graph/picture": [picture]}, step=step)


def group(name: str) -> str:
    """Put the name of a column under a heading: TensorBoard shows a panel for each heading.

    Example:
        >>> group("loss_graph"), group("val_head_map@r"), group("mean_degree"), group("lr")
        ('loss/loss_graph', 'val/head_map@r', 'graph/mean_degree', 'training/lr')
    """
    first, _, rest = name.partition("_")
    if first in ("val", "test"):
        return f"{first}/{rest}"
    if first == "loss":
        return f"loss/{name}"
    return f"{'training' if name in ('lr', 'seconds') else 'graph'}/{name}"


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, bool | int | float | str]:
    """Flatten nested values, in types that every tracker takes.

    Example:
        >>> flat({"a": 1, "b": {"c": None}})
        {'a': 1, 'b.c': 'None'}
    """
    plain: dict[str, bool | int | float | str] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            plain |= flat(value, f"{prefix}{name}.")
        else:
            plain[prefix + name] = value if isinstance(value, (bool, int, float)) else str(value)
    return plain


def pixels(figure: Figure) -> np.ndarray:
    """Render a figure as an array [H, W, 3] of bytes."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[:, :, :3].copy()
