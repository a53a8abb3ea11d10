"""The explorer page of a run folder."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import Tensor

from bgl.datasets import Splits
from bgl.pipeline.arrays import RECORD_FILE, Arrays, read_or_note
from bgl.pipeline.comparison import comparison
from bgl.pipeline.data import load_splits
from bgl.pipeline.files import Training, is_training, read_results, read_training
from bgl.pipeline.results import CONFIG_FILE, Results
from bgl.visualization._encode import atlas, text64
from bgl.visualization._frames import graph_payload, unpack_frames
from bgl.visualization.curves import STYLES
from bgl.visualization.embedding import scattered
from bgl.visualization.explorer import write_page
from bgl.visualization.projection import project

CURVES = {
    "Loss": ("loss", "loss_plain", "loss_graph"),
    **{
        f"{title} on {part} classes": (f"{short}_backbone_{metric}", f"{short}_head_{metric}")
        for short, part in (("val", "validation"), ("test", "test"))
        for metric, title in (("recall@1", "Recall@1"), ("map@r", "MAP@R"))
    },
    "Share of the graph within a class": ("same_class_edges", "same_class_weight"),
}


Readers = dict[str, Callable[[int], Tensor]]  # of images, by the part of the data they are in


def explore_run(
    folder: str | Path, path: str | Path | None = None, splits: Splits | None = None
) -> Path:
    """Write the explorer page of a run folder; what the folder lacks the page says.

    Args:
        folder: Of a run of ``bgl train``.
        path: File to write; default: ``explorer.html`` in the folder.
        splits: The run's data, for the pictures; loaded as the run's configuration says if None.
    """
    return write_page(run_payload(Path(folder), splits), path or Path(folder) / "explorer.html")


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
    order = list(dict.fromkeys(f"{row['method']}-seed{row['seed']}" for row in results["rows"]))
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

    atlases: dict[str, Any] = {}
    payload: dict[str, Any] = {
        "title": f"Run {folder.resolve().name}",
        "kind": "run",
        "notes": notes,
        "atlases": atlases,
        "graphs": _graphs(recorded, pictures, atlases, notes),
        "table": {"header": header, "cells": cells} if cells else None,
        "selection": results.get("selection"),
        "curves": _curves(trainings),
        "config": [{"name": t.name, "text": t.text} for t in trainings if t.text],
    }
    if about := {name: value for name, value in results.items() if name != "rows"}:
        text = yaml.safe_dump(about, sort_keys=False, allow_unicode=True)
        payload["config"].insert(0, {"name": "About this run", "text": text})
    tested = [t for t in recorded if "nearest" in t.recorded]
    payload |= _retrieval(pretrained, tested, pictures, atlases, notes)
    return payload


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


def _atlas(pictures: Readers, wanted: list[tuple[str, int]], notes: list[str]) -> Any:
    """Put the pictures of (part, row) on one sheet; None if they cannot be read."""
    if not wanted or any(part not in pictures for part, _ in wanted):
        return None
    try:
        return atlas((pictures[part](row) for part, row in wanted), len(wanted))
    except (OSError, ValueError, IndexError) as error:
        notes.append(f"An image cannot be read, so some pictures are missing: {error}")
        return None


def _graphs(
    recorded: list[Training], pictures: Readers, atlases: dict[str, Any], notes: list[str]
) -> list[dict[str, Any]]:
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
        if name not in atlases and (made := _atlas(pictures, [(part, i) for i in batch], notes)):
            atlases[name] = made
        sheet = name if name in atlases else None
        present, labels = np.unique(arrays["batch_labels"], return_inverse=True)
        classes = arrays["batch_classes"][present].tolist()
        nodes = arrays["batch_names"].tolist()
        graphs.append(
            graph_payload(training.name, frames, labels.tolist(), classes, nodes, sheet, about)
        )
    if recorded and not graphs:
        notes.append("No model of this run was trained with a graph.")
    return graphs


def _retrieval(
    pretrained: Arrays,
    tested: list[Training],
    pictures: Readers,
    atlases: dict[str, Any],
    notes: list[str],
) -> dict[str, Any]:
    """Collect the answers to the queries under every model, and the maps."""
    models = [("pretrained", pretrained)] if "nearest" in pretrained else []
    models += [(t.name, t.recorded) for t in tested]
    models = [m for m in models if _same_items(m[1], models[0][1])]
    tested = [t for t in tested if t.name in dict(models)]
    if not models:
        notes.append("No answers to test queries were recorded: no map and no retrieval browser.")
        return {}
    first = models[0][1]
    queries, spots = first["queries"], first["map_items"]
    shift = 0 if bool(first["own_gallery"]) else len(first["test_labels"])
    width = min(arrays["nearest"].shape[1] for _, arrays in models)
    answers = {name: arrays["nearest"] for name, arrays in models}
    refined = {t.name: f"{t.name}, refined" for t in tested if _fits(t, queries, width)}
    answers |= {refined[t.name]: t.refined["nearest"] for t in tested if t.name in refined}
    found = {name: nearest[:, :width] + shift for name, nearest in answers.items()}
    wanted = np.unique(np.concatenate([queries, spots, *(f.ravel() for f in found.values())]))
    labels, names = first["test_labels"], first["test_names"]
    if shift:
        labels = np.concatenate([labels, first["gallery_labels"]])
        names = np.concatenate([names, first["gallery_names"]])
    if len(wanted) > 65535:
        notes.append("Too many test images for one page: no map and no retrieval browser.")
        return {}
    places = [
        ("gallery", i - shift) if shift and i >= shift else ("test", i) for i in wanted.tolist()
    ]
    if made := _atlas(pictures, places, notes):
        atlases["items"] = made

    def slots(ids: np.ndarray) -> np.ndarray:
        return np.searchsorted(wanted, ids)

    views: list[dict[str, Any]] = []
    points: np.ndarray | None = None
    for name, arrays in models:
        if np.array_equal(arrays["map_items"], spots):
            features = torch.from_numpy(arrays["map_features"].astype(np.float32))
            points = project(features, start=points)
            title = "before training" if name == "pretrained" else name
            shown = scattered(points, 150, 0.045)
            views.append({"name": title, "points": text64(points.ravel(), "f4"), "shown": shown})
    return {
        "items": {
            "labels": labels[wanted].tolist(),
            "names": names[wanted].tolist(),
            "classes": first["test_classes"].tolist(),
        },
        "map": {"items": slots(spots).tolist(), "views": views},
        "retrieval": {
            "k": width,
            "queries": slots(queries).tolist(),
            "models": [
                {"name": name, "nearest": text64(slots(ids).ravel(), "u2")}
                for name, ids in found.items()
            ],
            "comparisons": _comparisons(tested, refined, list(found)),
        },
    }


def _same_items(one: Arrays, other: Arrays) -> bool:
    """Tell whether two models were asked the same queries, and searched the same gallery."""
    names = ("queries", "test_names", "gallery_names")
    return all(np.array_equal(one.get(name, ()), other.get(name, ())) for name in names)


def _fits(training: Training, queries: np.ndarray, width: int) -> bool:
    """Tell whether a model has answers of refined embeddings to these queries."""
    recorded, refined = training.recorded, training.refined
    gallery = recorded["test_labels" if recorded["own_gallery"] else "gallery_labels"]
    return (
        bool(refined)
        and np.array_equal(refined["queries"], queries)
        and refined["nearest"].shape[1] >= width
        and int(refined["nearest"].max(initial=0)) < len(gallery)
    )


def _comparisons(
    tested: list[Training], refined: dict[str, str], models: list[str]
) -> list[dict[str, Any]]:
    """Name the models whose answers are shown side by side, by their numbers.

    Args:
        tested: The trained models that have answers.
        refined: Names of refined models, by that of the plain one.
        models: Names of all that have answers, in their order.
    """
    number: dict[str | None, int] = {name: i for i, name in enumerate(models)}
    plain = {t.seed: t.name for t in reversed(tested) if not t.has_graph}
    any_plain = next(iter(plain.values()), None)
    pairs: list[tuple[str | None, str | None]] = [
        (t.name, plain.get(t.seed, any_plain)) for t in tested if t.has_graph
    ]
    return [
        {
            "name": name or "none",
            "before": number.get("pretrained"),
            "without": number.get(base),
            "graph": number.get(name),
            "by": "training" if base is None else "graph",
        }
        for name, base in pairs or [(None, any_plain)]
    ] + [
        {
            "name": f"{name} (transductive)",
            "titles": ["Before training", "As trained", "Refined"],
            "before": number.get("pretrained"),
            "without": number[plain_name],
            "graph": number[name],
            "by": "refinement",
        }
        for plain_name, name in refined.items()
    ]


def _curves(trainings: list[Training]) -> list[dict[str, Any]]:
    """Collect the lines by panel: a colour for each model, a dash for each quantity."""
    panels = []
    for title, columns in CURVES.items():
        lines = []
        for color, training in enumerate(trainings):
            for dash, column in enumerate(columns):
                rows = [row for row in training.history if column in row and "epoch" in row]
                if rows:
                    lines.append(
                        {
                            "name": f"{training.name} {column.removeprefix('val_')}",
                            "x": [row["epoch"] for row in rows],
                            "y": [row[column] for row in rows],
                            "color": color,
                            "dash": dash % len(STYLES),
                        }
                    )
        if lines:
            panels.append({"title": title, "lines": lines})
    return panels
