"""Pictures of learned graphs; the first of a run is that of some images before training."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import torch
from accelerate.utils import set_seed
from matplotlib.figure import Figure
from torch_geometric.data import Data
from torchvision.transforms import v2

from bgl.datasets import ImageDataset, Splits
from bgl.models import Encoder
from bgl.pipeline.recorder import batch_graphs, fixed_batch
from bgl.training import TrainConfig, build_model, make_accelerator
from bgl.training.build import describe_model
from bgl.visualization import draw_batch_graph

GRAPH_FILE = "graph.png"
SIDE = 64  # of a picture
CLASSES, PER_CLASS, MAX_EDGES = 8, 4, 160  # more pictures would hide the edges


def draw_first_graph(config: TrainConfig, splits: Splits, path: Path) -> None:
    """Draw the graph that the first block learns of a few images before it is trained."""
    data = splits.train if splits.val is None else splits.val
    batch = fixed_batch(data.labels, CLASSES * PER_CLASS, PER_CLASS)
    device = make_accelerator(config.device, config.deterministic).device
    set_seed(config.seed)
    model, info = build_model(config)  # not build_encoder: the other processes do not take part
    encoder = Encoder(model, describe_model(config, info), device)
    figure = graph_figure(batch_graphs(encoder, data, batch)[0], data, batch)
    figure.savefig(path, dpi=90)
    plt.close(figure)


def graph_figure(
    graph: Data, data: ImageDataset, batch: list[int], max_edges: int = MAX_EDGES
) -> Figure:
    """Draw a graph of some images of ``data`` with their pictures."""
    shrink = v2.Compose([v2.Resize(SIDE, antialias=True), v2.CenterCrop(SIDE)])
    images = torch.stack([shrink(data.read(i, SIDE)) for i in batch])
    figure, axes = plt.subplots(figsize=(9, 9), layout="constrained")
    draw_batch_graph(graph.cpu(), images, max_edges, ax=axes)
    return figure
