"""Record what the explorer page shows of a model in training."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize
from torch_geometric.data import Data

from bgl._neighbors import nearest
from bgl.datasets import ImageDataset, Splits
from bgl.models import Encoder
from bgl.pipeline.arrays import RECORD_FILE, Arrays, read_or_note, write_arrays
from bgl.pipeline.results import compared
from bgl.training import Progress, TrainingRun
from bgl.training.progress import Vectors
from bgl.visualization._frames import Frame, make_frame, unpack_frames
from bgl.visualization.projection import pca

MOMENTS = 12  # epochs whose graphs are kept, the state before training among them
MOST_NODES = 405
K = 8  # answers kept for a query
MOST_QUERIES, FEW_QUERIES = 5000, 200  # a larger test set is sampled
MAP_ITEMS, MAP_DIM = 1200, 32
BINS = 100  # of the histograms of similarities, from -1 to 1

Tested = tuple[Tensor, Tensor | None]  # embeddings of the test classes, and of their gallery


class LastTest(Progress):
    """Keep the embeddings of the test classes that are compared, as they were measured last.

    Args:
        splits: The data that are trained on.
    """

    def __init__(self, splits: Splits) -> None:
        self.splits = splits
        self.vectors: Tested | None = None

    def measured(
        self, data: ImageDataset, vectors: Vectors, gallery: Vectors | None = None
    ) -> None:
        if data is self.splits.test:
            self.vectors = kept(vectors), None if gallery is None else kept(gallery)


def kept(vectors: Vectors) -> Tensor:
    """Return the vectors that are refined and shown."""
    return vectors[compared(vectors)]


class Recorder(LastTest):
    """Keep the graphs of one validation batch, and the answers to test queries.

    The recorder listens to the training loop and writes ``explorer.npz`` (some hundred kilobytes)
    into its folder. It does not change the result: it draws from no global random generator.
    Before the first step it embeds one batch more; afterwards it takes the features that the loop
    measures anyway.

    Args:
        folder: Where the model is trained.
        splits: The data that are trained on.
    """

    def __init__(self, folder: str | Path, splits: Splits) -> None:
        super().__init__(splits)
        self.path = Path(folder) / RECORD_FILE
        self.data = splits.train if splits.val is None else splits.val
        self.batch: list[int] = []
        self.frames: list[Frame] = []
        self.found: Arrays = {}
        self.moments: set[int] = set()
        self.features: Tensor | None = None  # of the batch, where the loop has measured it
        self.run: TrainingRun | None = None

    def begin(self, run: TrainingRun, epochs: int) -> None:
        self.run = run
        config = run.config
        size = min(config.batch_size, MOST_NODES)
        self.batch = fixed_batch(self.data.labels, size, config.per_class)
        self.moments = set(np.linspace(0, config.epochs, MOMENTS).round().astype(int).tolist())
        if not run.resumed:
            self._record(0)
        else:
            notes: list[str] = []
            recorded = unpack_frames(read_or_note(self.path, notes))
            self.frames = [frame for frame in recorded if (frame.epoch or 0) <= epochs]
            for note in notes:
                warnings.warn(note, stacklevel=2)

    def epoch(self, row: dict[str, Any]) -> None:
        if row["epoch"] in self.moments:
            self._record(row["epoch"])

    def measured(
        self, data: ImageDataset, vectors: Vectors, gallery: Vectors | None = None
    ) -> None:
        super().measured(data, vectors, gallery)
        if data is self.data:
            self.features = vectors["backbone"][self.batch].cpu()

    def finish(self) -> None:
        """Keep the answers to queries and the map of the last measured test classes.

        Call it when training is over.
        """
        if self.vectors is None:
            return
        x, gallery = self.vectors
        n = len(x)
        labels = self.splits.test.labels
        others = labels if self.splits.gallery is None else self.splits.gallery.labels
        items = map_items(labels)
        shown = x[items].cpu()
        queries = torch.arange(n)
        if n > MOST_QUERIES:
            queries = torch.cat([torch.linspace(0, n - 1, FEW_QUERIES).long(), items]).unique()
        k = min(K, n - 1 if gallery is None else len(gallery))
        self.found = {
            "queries": queries.numpy(),
            "nearest": nearest(x, queries, k, gallery).cpu().numpy().astype(np.int32),
            "ranks": first_right(x, labels, queries, gallery, others).numpy().astype(np.int32),
            "similarities": similarities(shown, labels[items]).numpy(),
            "own_gallery": np.array(gallery is None),
            "map_items": items.numpy(),
            "map_features": pca(shown, MAP_DIM).astype(np.float16),
        }
        self._write()

    def _record(self, epoch: int) -> None:
        """Learn the graph of the batch as a training step would, and keep it."""
        assert self.run is not None
        if self.run.config.block_names:
            graphs = batch_graphs(self.run.encoder, self.data, self.batch, self.features)
            self.frames = [frame for frame in self.frames if frame.epoch != epoch]
            self.frames += [make_frame(graph, epoch) for graph in graphs]
        self.features = None
        self._write()

    def _write(self) -> None:
        frames = self.frames

        def joined(parts: list[np.ndarray], kind: Any) -> np.ndarray:
            return np.concatenate([np.empty(0, kind), *parts]).astype(kind)

        arrays: Arrays = {
            "part": np.array("train" if self.splits.val is None else "val"),
            "batch": np.array(self.batch, np.int64),
            "moment": np.array([(f.epoch, f.block, f.iteration) for f in frames], np.int64),
            "edges": np.array([len(f.source) for f in frames], np.int64),
            "total": np.array([f.total for f in frames], np.int64),
            "source": joined([f.source for f in frames], np.uint16),
            "target": joined([f.target for f in frames], np.uint16),
            "weight": joined([f.weight for f in frames], np.float32),
            "digest": np.array(self.splits.digest),
            **image_arrays("batch", self.data, self.batch),
            **self.found,
        }
        if self.found:
            arrays |= image_arrays("test", self.splits.test)
            if self.splits.gallery is not None:
                arrays |= image_arrays("gallery", self.splits.gallery)
        write_arrays(self.path, arrays)


def image_arrays(name: str, data: ImageDataset, chosen: list[int] | None = None) -> Arrays:
    """Return labels, class names and image names, for a page without the dataset."""
    rows = list(range(len(data))) if chosen is None else chosen
    return {
        f"{name}_labels": data.labels[rows].numpy().astype(np.int32),
        f"{name}_classes": np.array(data.class_names, dtype=np.str_),
        f"{name}_names": np.array([data.paths[i] for i in rows], dtype=np.str_),
    }


def map_items(labels: Tensor, most: int = MAP_ITEMS) -> Tensor:
    """Choose rows of whole classes, spread evenly over all classes."""
    if len(labels) <= most:
        return torch.arange(len(labels))
    classes = labels.unique()
    wanted = max(1, round(most / (len(labels) / len(classes))))
    kept = classes[torch.linspace(0, len(classes) - 1, wanted).long()]
    return torch.isin(labels, kept).nonzero().flatten()[: 2 * most]


def first_right(
    x: Tensor, labels: Tensor, queries: Tensor, gallery: Tensor | None, gallery_labels: Tensor
) -> Tensor:
    """Rank the first image of the query's class by cosine [Q], from 1; 0 where there is none.

    The vectors may be on a device that the labels are not on.
    """
    labels, gallery_labels = labels.to(x.device), gallery_labels.to(x.device)
    rows, columns = normalize(x), normalize(x if gallery is None else gallery)
    ranks = []
    for block in queries.to(x.device).split(256):
        score = rows[block] @ columns.T
        if gallery is None:
            score.scatter_(1, block[:, None], -torch.inf)
        wrong = labels[block][:, None] != gallery_labels
        best = score.masked_fill(wrong, -torch.inf).amax(dim=1, keepdim=True)
        rank = 1 + (wrong & (score > best)).sum(dim=1)
        ranks.append(rank.masked_fill(best[:, 0] == -torch.inf, 0).cpu())
    return torch.cat(ranks)


def similarities(x: Tensor, labels: Tensor) -> Tensor:
    """Count the pairs of images by cosine [2, BINS]: those of one class, those of two classes."""
    unit = normalize(x)
    counts = torch.zeros(2, BINS, dtype=torch.long)
    for start in range(0, len(x), 256):
        rows = torch.arange(start, min(start + 256, len(x)))
        score = (unit[rows] @ unit.T).clamp(-1, 1)
        later = torch.arange(len(x)) > rows[:, None]  # each pair once
        same = labels[rows][:, None] == labels
        for kind, pairs in enumerate((later & same, later & ~same)):
            counts[kind] += torch.histc(score[pairs], BINS, -1, 1).long()
    return counts


def fixed_batch(labels: Tensor, size: int, per_class: int) -> list[int]:
    """Choose a class-balanced batch, always the same; the largest classes if not all fit."""
    counts = labels.bincount()
    enough = (counts >= min(per_class, int(counts.max()))).nonzero().flatten()
    wanted = min(max(1, size // per_class), len(enough))
    chosen = enough[torch.linspace(0, len(enough) - 1, wanted).long()]
    rows = [(labels == c).nonzero().flatten()[:per_class] for c in chosen]
    return [int(i) for i in torch.cat(rows)]


@torch.no_grad()
def batch_graphs(
    encoder: Encoder, data: ImageDataset, batch: list[int], features: Tensor | None = None
) -> list[Data]:
    """Learn the graphs of a batch, on its features in evaluation mode.

    The features are computed if they are not given.
    """
    model, device = encoder.model, encoder.device
    was_training = model.training
    if features is None:
        features = encoder.embed(data.subset(batch), output="backbone")
    labels = data.labels[batch].to(device)
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        model.blocks.eval()
        with warnings.catch_warnings():  # this batch may be smaller than those that are trained on
            warnings.filterwarnings("ignore", "k=.* needs at least")
            graphs = model.contextualize(features.to(device), labels, return_graph=True)[1]
        model.blocks.train(was_training)
    return graphs
