"""Draw the graph of one validation batch: ``python -m benchmarks.studies.picture RUN FILE``.

RUN is the folder of one method and seed inside a run folder, for instance ``runs/x/dybgr-seed0``.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.pages import save
from bgl import models
from bgl.pipeline import load_splits, read_config
from bgl.pipeline.picture import graph_figure
from bgl.pipeline.recorder import batch_graphs, fixed_batch


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
    batch = fixed_batch(data.labels, options.classes * config.per_class, config.per_class)
    graph = batch_graphs(models.load(options.run), data, batch)[-1]
    save(graph_figure(graph, data, batch, options.max_edges), options.file, dpi=90)


if __name__ == "__main__":
    main()
