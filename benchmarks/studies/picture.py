"""Draw the graph of one validation batch: ``python -m benchmarks.studies.picture RUN FILE``.

RUN is the folder of one method and seed inside a run folder, for instance ``runs/x/dybgr-seed0``.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import torch

from benchmarks.pages import save
from bgl import models
from bgl.pipeline import load_splits, read_config
from bgl.samplers import ClassBalancedSampler
from bgl.training.loop import freeze_batch_norm
from bgl.visualization import draw_batch_graph


def main() -> None:
    """Load the training's model, learn the graph of a batch it never trained on, and draw it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="folder with config.yaml and the model")
    parser.add_argument("file", type=Path, help="picture to write")
    parser.add_argument("--classes", type=int, default=8, help="classes in the batch")
    parser.add_argument("--max-edges", type=int, default=160, help="the strongest to draw")
    options = parser.parse_args()

    config = read_config(options.run)
    splits = load_splits(config)
    data = splits.val if splits.val is not None else splits.test
    per_class = config.per_class
    batch = next(iter(ClassBalancedSampler(data.labels, options.classes * per_class, per_class)))

    encoder = models.load(options.run)
    freeze_batch_norm(encoder.model.train())
    raw = [data.read(i) for i in batch]
    with torch.no_grad():
        images = torch.stack([encoder.transform(image) for image in raw])
        graph = encoder.model(images, data.labels[batch], return_graph=True).graph
    thumbnails = [torch.nn.functional.interpolate(image[None].float(), 64)[0] for image in raw]
    figure, axes = plt.subplots(figsize=(9, 9), layout="constrained")
    draw_batch_graph(graph, torch.stack(thumbnails).byte(), options.max_edges, ax=axes)
    save(figure, options.file, dpi=90)


if __name__ == "__main__":
    main()
