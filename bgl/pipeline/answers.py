"""The answers to the queries under every model, and the maps, for the page of a run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bgl.pipeline.arrays import Arrays
from bgl.pipeline.files import Training
from bgl.visualization._encode import atlas, text64
from bgl.visualization.embedding import scattered
from bgl.visualization.projection import describe_method, project

Readers = dict[str, Callable[[int], Tensor]]  # of images, by the part of the data they are in


class Sheets:
    """The pictures of a page, many on a sheet.

    Args:
        pictures: Where they are read.
        notes: What the reader of the page should know; may be added to.

    Attributes:
        atlases: The sheets by name.
    """

    def __init__(self, pictures: Readers, notes: list[str]) -> None:
        self.pictures, self.notes = pictures, notes
        self.atlases: dict[str, Any] = {}

    def add(self, name: str, wanted: list[tuple[str, int]]) -> str | None:
        """Make the sheet of (part, row), unless it is there; None if they cannot be read."""
        if name in self.atlases:
            return name
        if not wanted or any(part not in self.pictures for part, _ in wanted):
            return None
        try:
            images = (self.pictures[part](row) for part, row in wanted)
            self.atlases[name] = atlas(images, len(wanted))
        except (OSError, ValueError, IndexError) as error:
            self.notes.append(f"An image cannot be read, so some pictures are missing: {error}")
            return None
        return name


def retrieval_payload(
    pretrained: Arrays, tested: list[Training], sheets: Sheets, notes: list[str]
) -> dict[str, Any]:
    """Collect the answers to the queries under every model, and the maps.

    Args:
        pretrained: What was recorded of the untrained encoder.
        tested: The trained models that have answers.
        sheets: Gets the sheet "items".
        notes: What the reader should know; may be added to.
    """
    models = [("pretrained", pretrained)] if "nearest" in pretrained else []
    models += [(t.title, t.recorded) for t in tested]
    models = [m for m in models if _same_items(m[1], models[0][1])]
    tested = [t for t in tested if t.title in dict(models)]
    if not models:
        notes.append("No answers to test queries were recorded: no map and no retrieval browser.")
        return {}
    first = models[0][1]
    queries, spots = first["queries"], first["map_items"]
    shift = 0 if bool(first["own_gallery"]) else len(first["test_labels"])
    width = min(arrays["nearest"].shape[1] for _, arrays in models)
    answers = {name: arrays["nearest"] for name, arrays in models}
    refined = {t.title: f"{t.title}, refined" for t in tested if _fits(t, queries, width)}
    answers |= {refined[t.title]: t.refined["nearest"] for t in tested if t.title in refined}
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
    sheets.add("items", places)

    def slots(ids: np.ndarray) -> np.ndarray:
        return np.searchsorted(wanted, ids)

    def described(name: str, ids: np.ndarray) -> dict[str, Any]:
        recorded = dict(models).get(name, {})
        ranks = recorded.get("ranks")
        return {
            "name": name,
            "nearest": text64(slots(ids).ravel(), "u2"),
            "ranks": None if ranks is None else text64(ranks, "i4"),
            "similarities": recorded.get("similarities"),
        }

    return {
        "items": {
            "labels": labels[wanted].tolist(),
            "names": names[wanted].tolist(),
            "classes": first["test_classes"].tolist(),
        },
        "map": {
            "items": slots(spots).tolist(),
            "method": describe_method(len(spots)),
            "total": len(first["test_labels"]),
            "classes": len(np.unique(first["test_labels"])),
            "views": _views(models, spots),
        },
        "retrieval": {
            "k": width,
            "gallery": len(first["gallery_labels"] if shift else first["test_labels"]),
            "queries": slots(queries).tolist(),
            "models": [described(name, ids) for name, ids in found.items()],
            "comparisons": _comparisons(tested, refined, list(found)),
        },
    }


def _views(models: list[tuple[str, Arrays]], spots: np.ndarray) -> list[dict[str, Any]]:
    """Map the same items under every model; each map begins at the one before."""
    views: list[dict[str, Any]] = []
    points: np.ndarray | None = None
    for number, (name, arrays) in enumerate(models):
        if np.array_equal(arrays["map_items"], spots):
            features = torch.from_numpy(arrays["map_features"].astype(np.float32))
            points = project(features, start=points)
            title = "before training" if name == "pretrained" else name
            shown = scattered(points, 150, 0.045)
            text = text64(points.ravel(), "f4")
            views.append({"name": title, "model": number, "points": text, "shown": shown})
    return views


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

    The graph is credited with a difference only where the two trainings share seed, loss,
    augmentation and length.

    Args:
        tested: The trained models that have answers.
        refined: Titles of refined models, by that of the plain one.
        models: Titles of all that have answers, in their order.
    """
    number: dict[str | None, int] = {name: i for i, name in enumerate(models)}
    plain = {_setting(t): t.title for t in reversed(tested) if not t.has_graph}
    pairs: list[tuple[str | None, str | None]] = [
        (t.title, plain.get(_setting(t))) for t in tested if t.has_graph
    ]
    return [
        {
            "name": name or base or "before training",
            "before": number.get("pretrained"),
            "without": number.get(base),
            "graph": number.get(name),
            "by": "training" if base is None or name is None else "graph",
        }
        for name, base in pairs or [(None, title) for title in plain.values()] or [(None, None)]
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


def _setting(training: Training) -> tuple[object, ...]:
    """Return what two trainings must share for their difference to be the graph's."""
    config = training.config
    return () if config is None else (config.seed, config.loss, config.augmentation, config.epochs)
