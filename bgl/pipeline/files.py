"""Reading what a run folder holds; every file may be missing or broken."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import yaml

from bgl.visualization.curves import read_history

FILE = "explorer.npz"
REFINED = "refined.npz"
Arrays = dict[str, np.ndarray]


@dataclass
class Training:
    """What the folder of one training holds; ``{}`` or ``[]`` for what it does not."""

    name: str
    config: dict[str, Any]
    text: str  # config.yaml
    history: list[dict[str, float]]
    recorded: Arrays
    refined: Arrays  # answers of refined embeddings

    @property
    def seed(self) -> Any:
        return self.config.get("seed")

    @property
    def arm(self) -> str:
        """The name without the seed."""
        return self.name.removesuffix(f"-seed{self.seed}")

    @property
    def has_graph(self) -> bool:
        return self.config.get("method", "none") != "none"


def is_training(path: Path) -> bool:
    """Whether this is the folder of a training."""
    return path.is_dir() and ((path / "config.yaml").exists() or (path / FILE).exists())


def read_results(folder: Path, notes: list[str]) -> dict[str, Any]:
    """The rows of results.json, and the rest of it as text."""
    try:
        content = json.loads((folder / "results.json").read_text(encoding="utf-8"))
        rows = [row for row in content.pop("rows") if _measured(row)]
    except FileNotFoundError:
        notes.append("results.json is missing: there is no results table (yet).")
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        notes.append("results.json cannot be read: there is no results table.")
    else:
        about = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
        return {"rows": rows, "about": about, "selection": content.get("selection")}
    return {"rows": []}


def _measured(row: dict[str, Any]) -> bool:
    """Whether a row says what was measured, and holds nothing but numbers then."""
    named = all(isinstance(row[name], str) for name in ("method", "embedding")) and "seed" in row
    return named and all(isinstance(value, (int, float)) for value in row["metrics"].values())


def read_training(folder: Path, notes: list[str]) -> Training:
    """What the folder of one training holds."""
    config: Any = {}
    text = ""
    history: list[dict[str, float]] = []
    try:
        text = (folder / "config.yaml").read_text(encoding="utf-8")
        config = yaml.safe_load(text)
    except (OSError, ValueError, yaml.YAMLError):
        notes.append(f"{folder.name}/config.yaml is missing or cannot be read.")
    try:
        history = read_history(folder / "metrics.csv")
    except (OSError, ValueError, csv.Error):
        notes.append(f"{folder.name}/metrics.csv is missing or cannot be read: no curves for it.")
    recorded = read_arrays(folder / FILE, notes)
    refined = read_arrays(folder / REFINED, notes)
    config = config if isinstance(config, dict) else {}
    return Training(folder.name, config, text, history, recorded, refined)


def read_arrays(path: Path, notes: list[str]) -> Arrays:
    """The arrays of an explorer.npz, or none."""
    if not path.exists():
        return {}
    try:
        with np.load(path) as arrays:
            return dict(arrays)
    except (OSError, ValueError, BadZipFile, EOFError):
        notes.append(f"{path.parent.name}/{path.name} cannot be read.")
        return {}
