"""Do classes that lie close together also vary alike? (Table I and Fig. 3 of IAA, 2022.)

``python -m benchmarks.studies.correlation embeddings.npz --plot correlation.png`` reads arrays
``embeddings`` [N, D] (before normalisation) and ``labels`` [N] from an .npz or .safetensors file,
prints Spearman's rank correlation of the two distances between classes and draws them.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from safetensors.torch import load_file
from scipy.stats import spearmanr
from torch import Tensor

from bgl.augment import ClassStatistics

MAX_POINTS = 20_000  # that a scatter plot still shows; more are thinned evenly


def distances(embeddings: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Compute distances of means (Eq. 9) and of variances (Eq. 10) of all pairs of classes, i < k.

    Only classes with at least two samples count.
    """
    names, rows = labels.unique(return_inverse=True)
    statistics = ClassStatistics(len(names), embeddings.size(1))
    statistics.estimate(embeddings, rows)
    known = statistics.class_size > 1
    mean, variance = statistics.mean[known].square(), statistics.variance[known]
    return torch.pdist(mean), torch.pdist(variance)


def plot(mean: Tensor, variance: Tensor, title: str) -> Figure:
    """Variance distance against mean distance, one point a pair of classes."""
    every = max(1, -(-len(mean) // MAX_POINTS))
    figure = Figure(figsize=(5, 4), layout="constrained")
    axes = figure.subplots()
    axes.scatter(mean[::every], variance[::every], s=8, alpha=0.3, linewidths=0)
    axes.set_xlabel("mean distance between classes")
    axes.set_ylabel("variance distance between classes")
    axes.set_title(title)
    return figure


def main(argv: list[str] | None = None) -> None:
    """Print the correlation and draw the figure."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.studies.correlation", description=__doc__
    )
    parser.add_argument("file", type=Path, help=".npz or .safetensors: embeddings, labels")
    parser.add_argument("--plot", type=Path, help="write the figure here (.png, .pdf, .svg)")
    options = parser.parse_args(argv)
    if options.file.suffix == ".safetensors":
        arrays = load_file(options.file)
    else:
        with np.load(options.file) as stored:
            arrays = {name: torch.from_numpy(stored[name]) for name in stored.files}
    mean, variance = distances(arrays["embeddings"], arrays["labels"])
    title = f"Spearman correlation {spearmanr(mean, variance).statistic:.4f}"
    print(f"{title} of mean and variance distances ({len(mean)} pairs of classes)")
    if options.plot is not None:
        plot(mean, variance, title).savefig(options.plot, dpi=150)


if __name__ == "__main__":
    main()
