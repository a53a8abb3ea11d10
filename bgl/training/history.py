"""The rows of metrics.csv: everything recorded of every epoch."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import torch
from torch_geometric.data import Data

from bgl._io import write_text
from bgl.training.config import TrainConfig


def graph_statistics(graphs: list[Data]) -> dict[str, float]:
    """Describe learned graphs, as the mean over those of all blocks and iterations.

    Share of the edges, and of the edge weight, between samples of the same class; incoming edges
    of a node; entropy of their weights in nats.
    """
    if not graphs:
        return {}
    rows = []
    for graph in graphs:
        source, target = graph.edge_index
        same = (graph.y[source] == graph.y[target]).float()
        weight = graph.edge_weight.detach().float().reshape(len(same), -1).mean(1)  # over heads
        total = weight.new_zeros(len(graph.y)).index_add_(0, target, weight)
        share = weight / total.clamp_min(1e-12)[target]
        rows.append(
            torch.stack(
                [
                    same.mean(),
                    (same * weight).sum() / weight.sum(),
                    same.new_tensor(len(same) / len(graph.y)),
                    -torch.special.xlogy(share, share).sum() / len(graph.y),
                ]
            )
        )
    names = ("same_class_edges", "same_class_weight", "mean_degree", "weight_entropy")
    return dict(zip(names, torch.stack(rows).mean(0).tolist(), strict=True))


def chosen_epoch(history: list[dict[str, Any]], config: TrainConfig) -> int:
    """Return the epoch with the best validation MAP@R, the first of equals.

    With protocol "paper" the test Recall@1 counts; where nothing was measured, the last epoch.
    """
    part, metric = ("test", "recall@1") if config.protocol == "paper" else ("val", "map@r")
    key = f"{part}_{config.select_embedding}_{metric}"
    measured = [row for row in history if key in row]
    if not measured:
        return int(history[-1]["epoch"])
    return int(max(measured, key=lambda row: row[key])["epoch"])


def write_history(path: Path, history: list[dict[str, Any]]) -> None:
    """Write metrics.csv, a line per epoch."""
    text = io.StringIO()
    columns = list(dict.fromkeys(name for row in history for name in row))
    writer = csv.DictWriter(text, columns)
    writer.writeheader()
    writer.writerows(history)
    write_text(path, text.getvalue())
