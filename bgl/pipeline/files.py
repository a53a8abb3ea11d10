"""Read a run folder, in which any file may be missing or damaged."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bgl._records import read_record
from bgl.pipeline.arrays import RECORD_FILE, REFINED_FILE, Arrays, read_or_note
from bgl.pipeline.results import CONFIG_FILE, RESULTS_FILE, Results
from bgl.training import TrainConfig
from bgl.visualization.curves import read_history


@dataclass
class Training:
    """The folder of one model; None, ``{}`` or ``[]`` stand for what is missing."""

    name: str
    config: TrainConfig | None
    text: str  # config.yaml
    history: list[dict[str, float]]
    recorded: Arrays
    refined: Arrays  # answers of refined embeddings

    @property
    def seed(self) -> int | None:
        return None if self.config is None else self.config.seed

    @property
    def arm(self) -> str:
        """Return the name without the seed."""
        return self.name.removesuffix(f"-seed{self.seed}")

    @property
    def title(self) -> str:
        """Return the name as the page shows it."""
        return self.name if self.arm == self.name else f"{self.arm}, seed {self.seed}"

    @property
    def has_graph(self) -> bool:
        return self.config is not None and self.config.method != "none"


def is_training(path: Path) -> bool:
    """Tell whether a model was trained in this folder."""
    return path.is_dir() and ((path / CONFIG_FILE).exists() or (path / RECORD_FILE).exists())


def read_config(folder: Path) -> TrainConfig:
    """Read the configuration of a model.

    Raises:
        OSError: If there is no config.yaml, or it cannot be opened.
        ValueError: If it holds anything else; the message names the file.
    """
    path = folder / CONFIG_FILE
    values = read_record(path, dict[str, Any], "restore it, or train anew in another folder")
    try:
        return TrainConfig.from_dict(values)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"Expected {path} to be a configuration of this version of bgl, but {error}: train "
            "anew in another folder"
        ) from error


def read_results(folder: Path) -> Results:
    """Read the results.json of a run.

    Raises:
        OSError: If there is none, or it cannot be opened.
        ValueError: If it holds anything else; the message names the file.
    """
    remedy = "move it away; what was measured is in the result.json of each model as well"
    return read_record(folder / RESULTS_FILE, Results, remedy)


def read_training(folder: Path, notes: list[str]) -> Training:
    """Read the folder of one model, and note what is missing."""
    config, text = None, ""
    history: list[dict[str, float]] = []
    try:
        config = read_config(folder)
        text = (folder / CONFIG_FILE).read_text(encoding="utf-8")
    except (OSError, ValueError):
        notes.append(f"{folder.name}/{CONFIG_FILE} is missing or cannot be read.")
    try:
        history = read_history(folder / "metrics.csv")
    except (OSError, ValueError, csv.Error):
        notes.append(f"{folder.name}/metrics.csv is missing or cannot be read: no curves for it.")
    recorded = read_or_note(folder / RECORD_FILE, notes)
    refined = read_or_note(folder / REFINED_FILE, notes)
    return Training(folder.name, config, text, history, recorded, refined)
