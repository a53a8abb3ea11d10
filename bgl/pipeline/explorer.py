"""The explorer page of a run folder."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from bgl.datasets import Splits
from bgl.pipeline.answers import Readers, Sheets, retrieval_payload
from bgl.pipeline.arrays import RECORD_FILE, read_or_note
from bgl.pipeline.comparison import comparison
from bgl.pipeline.data import load_splits
from bgl.pipeline.files import Training, is_training, read_results, read_training
from bgl.pipeline.overview import overview
from bgl.pipeline.results import CONFIG_FILE, Results, model_name
from bgl.visualization._frames import graph_payload, unpack_frames
from bgl.visualization.curves import STYLES
from bgl.visualization.explorer import write_page

# titles of the lines of each panel by their columns in metrics.csv; but for losses in percent
CURVES = {
    "Loss": {"loss": "sum", "loss_plain": "plain", "loss_graph": "through the graph"},
    **{
        f"{title} on {part} classes": {
            f"{short}_{embedding}_{metric}": embedding for embedding in ("backbone", "head")
        }
        for short, part in (("val", "validation"), ("test", "test"))
        for metric, title in (("recall@1", "Recall@1"), ("map@r", "MAP@R"))
    },
    "Share of the graph within a class": {
        "same_class_edges": "edges",
        "same_class_weight": "weight",
    },
}


def explore_run(
    folder: str | Path | Sequence[str | Path],
    path: str | Path | None = None,
    splits: Splits | None = None,
) -> Path:
    """Write the explorer page of a run folder; what the folder lacks the page says.

    Args:
        folder: Of a run of ``bgl train``; or the folders of several runs, for one page.
        path: File to write; default: ``explorer.html`` in the (first) folder.
        splits: The data, for the pictures; loaded as each run's configuration says if None.

    Raises:
        FileNotFoundError: If a folder does not exist.
        ValueError: If there is no folder.
    """
    folders = [Path(folder)] if isinstance(folder, (str, Path)) else [Path(f) for f in folder]
    if not folders:
        raise ValueError("Expected argument `folder` to have at least one run folder, but got none")
    runs = [run_payload(f, splits) for f in folders]
    title = f"{'Run' if len(runs) == 1 else 'Runs'} {', '.join(run['name'] for run in runs)}"
    page = {"title": title, "kind": "run", "runs": runs}
    return write_page(page, path or folders[0] / "explorer.html")


def run_payload(folder: Path, splits: Splits | None = None) -> dict[str, Any]:
    """Collect everything the page shows of a run; for what is missing there is a note.

    Raises:
        FileNotFoundError: If the folder does not exist.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no run folder {folder}")
    notes: list[str] = []
    results = _results(folder, notes)
    trainings = [
        read_training(path, notes) for path in sorted(folder.iterdir()) if is_training(path)
    ]
    if not trainings:
        notes.append(f"This folder holds no training (a folder with {CONFIG_FILE}).")
    order = list(dict.fromkeys(model_name(row["method"], row["seed"]) for row in results["rows"]))
    trainings.sort(
        key=lambda t: (order.index(t.name) if t.name in order else len(order), t.has_graph)
    )
    pretrained = read_or_note(folder / RECORD_FILE, notes)
    # one model of each kind in detail: the page stays small
    detailed = list({t.arm: t for t in reversed(trainings)}.values())[::-1]
    recorded = [t for t in detailed if t.recorded]
    notes += [
        f"{training.name} has no {RECORD_FILE}: its graphs and answers are not shown."
        for training in detailed
        if not training.recorded
    ]
    if recorded and splits is None:
        splits = _named_data(folder, trainings, notes)
    pictures = {} if splits is None else _readers(splits, recorded, notes)
    header, cells = comparison(results["rows"])

    sheets = Sheets(pictures, notes)
    payload: dict[str, Any] = {
        "name": folder.resolve().name,
        "notes": notes,
        "overview": overview(results),
        "atlases": sheets.atlases,
        "graphs": _graphs(recorded, sheets, notes),
        "table": {"header": header, "cells": cells} if cells else None,
        "selection": results.get("selection"),
        "curves": _curves(trainings),
        "config": [{"name": t.title, "text": t.text} for t in trainings if t.text],
    }
    if about := {name: value for name, value in results.items() if name != "rows"}:
        text = yaml.safe_dump(about, sort_keys=False, allow_unicode=True)
        payload["config"].insert(0, {"name": "About this run", "text": text})
    tested = [t for t in recorded if "nearest" in t.recorded]
    return payload | retrieval_payload(pretrained, tested, sheets, notes)


def _results(folder: Path, notes: list[str]) -> Results:
    """Read results.json, or return no rows and leave a note."""
    try:
        return read_results(folder)
    except FileNotFoundError:
        notes.append("results.json is missing: there is no results table (yet).")
    except (OSError, ValueError) as error:
        notes.append(f"results.json cannot be read: there is no results table. {error}")
    return {"rows": []}


def _named_data(folder: Path, trainings: list[Training], notes: list[str]) -> Splits | None:
    """Load the data that the run's configuration names, if possible.

    The page may be given away, and the run may be somebody else's: a warning names what is opened
    outside of its folder, and what is found there does not get into the notes.
    """
    named = next((training for training in trainings if training.config), None)
    if named is None or named.config is None:
        return None
    config = dataclasses.replace(named.config, download=False)
    places = [Path(place) for place in (config.table, config.data_root) if place is not None]
    if outside := [str(p) for p in places if not p.resolve().is_relative_to(folder.resolve())]:
        warnings.warn(
            f"Reads {' and '.join(outside)}, as {named.name}/{CONFIG_FILE} says", stacklevel=3
        )
    try:
        return load_splits(config)
    except (OSError, ValueError) as error:
        notes.append("The images of the dataset cannot be loaded, so nothing has a picture.")
        warnings.warn(f"The page has no pictures: {' '.join(str(error).split())}", stacklevel=3)
    return None


def _readers(splits: Splits, recorded: list[Training], notes: list[str]) -> Readers:
    """Return the readers of the data, if they are those that the run was trained on."""
    if any(str(t.recorded["digest"]) != splits.digest for t in recorded):
        notes.append("The dataset is no longer the one of this run, so nothing has a picture.")
        return {}
    return {part: dataset.read for part, dataset in splits.parts().items()}


def _graphs(recorded: list[Training], sheets: Sheets, notes: list[str]) -> list[dict[str, Any]]:
    graphs = []
    for training in recorded:
        arrays = training.recorded
        frames = unpack_frames(arrays)
        if not frames:
            continue
        part = str(arrays["part"])
        about = ["there are no validation classes, so this is a training batch"]
        about = [] if part == "val" else about
        batch = arrays["batch"].tolist()
        name = "batch-" + "-".join(map(str, [part, len(batch), sum(batch)]))
        sheet = sheets.add(name, [(part, i) for i in batch])
        present, labels = np.unique(arrays["batch_labels"], return_inverse=True)
        classes = arrays["batch_classes"][present].tolist()
        nodes = arrays["batch_names"].tolist()
        graphs.append(
            graph_payload(training.title, frames, labels.tolist(), classes, nodes, sheet, about)
        )
    if recorded and not graphs:
        notes.append("No model of this run was trained with a graph.")
    return graphs


def _curves(trainings: list[Training]) -> list[dict[str, Any]]:
    """Collect the lines by panel: a colour for each model, a dash for each quantity."""
    panels = []
    for title, columns in CURVES.items():
        unit, factor = ("", 1) if title == "Loss" else ("%", 100)
        lines = []
        for color, training in enumerate(trainings):
            for dash, (column, name) in enumerate(columns.items()):
                rows = [row for row in training.history if column in row and "epoch" in row]
                if rows:
                    lines.append(
                        {
                            "name": f"{training.title}: {name}",
                            "x": [row["epoch"] for row in rows],
                            "y": [factor * row[column] for row in rows],
                            "color": color,
                            "dash": dash % len(STYLES),
                        }
                    )
        if lines:
            panels.append({"title": title, "unit": unit, "lines": lines})
    return panels
