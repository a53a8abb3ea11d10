"""Published figures, to be compared with one's own. How each epoch was selected is part of it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

_DATASETS = ("cub", "cars", "sop", "inshop", "vehicleid_medium")


@dataclass(frozen=True)
class PublishedRow:
    """One line of a paper's table for one dataset."""

    system: str
    dataset: str  # as bgl.datasets.load_dataset knows it
    source: str
    backbone: str | None
    embedding: str
    selection: str | None  # how the epoch was chosen, where that is known
    figures: dict[str, float]  # percent, by the names of bgl.metrics.retrieval_metrics


@cache
def published() -> dict[str, Any]:
    """Read the packaged ``published.json``: figures, and how they were obtained."""
    return json.loads(Path(__file__).with_name("published.json").read_text(encoding="utf-8"))


def published_rows(system: str | None = None, dataset: str | None = None) -> list[PublishedRow]:
    """Return the published rows, of one system or one dataset if given.

    Example:
        >>> [row.figures["recall@1"] for row in published_rows("DyBGR", "cub")]
        [88.3]
    """
    rows = []
    for row in published()["rows"]:
        for key in _DATASETS:
            name = key.replace("_", "-")
            if key not in row or system not in (None, row["system"]) or dataset not in (None, name):
                continue
            figures = {f"recall@{k}": value for k, value in row[key]["recall"].items()}
            figures |= {m: row[key][m] for m in ("map@r", "r_precision") if m in row[key]}
            rows.append(
                PublishedRow(
                    row["system"],
                    name,
                    row["source"],
                    row.get("backbone"),
                    row["embedding"],
                    row.get("selection"),
                    figures,
                )
            )
    return rows
