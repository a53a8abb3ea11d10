"""Losses and metrics over the epochs."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from bgl.visualization._style import NODES, class_colors

MEASURED = ("backbone_recall@1", "backbone_map@r", "head_recall@1", "head_map@r")
PANELS = {
    "loss": ["loss", "loss_plain", "loss_graph"],
    "retrieval on validation classes": [f"val_{name}" for name in MEASURED],
    "retrieval on test classes (paper-style protocol)": [f"test_{name}" for name in MEASURED],
    "share of the graph within a class": ["same_class_edges", "same_class_weight"],
}
STYLES = ("solid", "dashed", "dotted", "dashdot")

Rows = Sequence[Mapping[str, Any]]


def training_curves(history: Rows | Mapping[str, Rows] | str | Path) -> Figure:
    """Draw losses, validation metrics and graph statistics over the epochs.

    Args:
        history: The lines of a ``metrics.csv`` (:attr:`bgl.training.TrainResult.history`), the
            file itself, or lines by the name of a model, to compare several: a colour for each
            model, a line style for each quantity.

    Returns:
        The figure, a panel for each group of quantities that there is.

    Raises:
        ValueError: If there are no lines, or none with a known quantity.
    """
    if isinstance(history, (str, Path)):
        history = read_history(history)
    runs = dict(history) if isinstance(history, Mapping) else {"": history}
    numbers = {name: [_numbers(row) for row in rows] for name, rows in runs.items()}
    panels = {
        title: [c for c in columns if any(c in row for rows in numbers.values() for row in rows)]
        for title, columns in PANELS.items()
    }
    panels = {title: columns for title, columns in panels.items() if columns}
    if not panels:
        raise ValueError(
            "Expected argument `history` to have lines with epoch, losses or metrics, but got none"
        )
    figure, axes = plt.subplots(
        1, len(panels), figsize=(4.6 * len(panels), 3.6), squeeze=False, layout="constrained"
    )
    palette = class_colors(list(range(len(runs))))
    # a single run has a colour for each quantity
    several = len(runs) > 1
    for ax, (title, columns) in zip(axes[0], panels.items(), strict=True):
        for (name, rows), color in zip(numbers.items(), palette, strict=True):
            for position, column in enumerate(columns):
                points = [(row["epoch"], row[column]) for row in rows if column in row]
                if points:
                    ax.plot(
                        *zip(*points, strict=True),
                        color=color if several else NODES[4 + position % 3],
                        linestyle=STYLES[position % len(STYLES)],
                        marker="o",
                        markersize=3,
                        label=" ".join([name, column.removeprefix("val_")]).strip(),
                    )
        ax.set_title(title, fontsize=10)
        ax.set_xlabel("epoch")
        ax.legend(frameon=False, fontsize=7)
        ax.grid(alpha=0.25)
    return figure


def read_history(path: str | Path) -> list[dict[str, float]]:
    """Read the lines of a ``metrics.csv``, without empty cells."""
    with Path(path).open(newline="", encoding="utf-8") as file:
        try:
            return [_numbers(row) for row in csv.DictReader(file)]
        except (UnicodeDecodeError, csv.Error) as error:
            raise ValueError(f"Expected {path} to be a CSV file in UTF-8, but {error}") from error


def _numbers(row: Mapping[str, Any]) -> dict[str, float]:
    numbers = {}
    for name, value in row.items():
        try:
            number = float(value)
        except (TypeError, ValueError):  # an empty cell
            continue
        if math.isfinite(number):
            numbers[name] = number
    return numbers
