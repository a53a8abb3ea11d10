"""Do classes that lie close together also vary alike? (Table I and Fig. 3 of IAA, 2022.)

    python -m bgl.augment.correlation embeddings.npz --plot correlation.png

reads arrays ``embeddings`` [N, D] (before normalisation) and ``labels`` [N] from an .npz or
.safetensors file, prints the correlation and draws the figure.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from bgl.augment.statistics import ClassStatistics

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Points that a scatter plot still shows; more are thinned evenly.
_MAX_POINTS = 20_000


class MeanVarianceCorrelation(NamedTuple):
    """How the distance between class means goes with the distance between class variances.

    Attributes:
        spearman: Spearman's rank correlation over the pairs, in [-1, 1]; NaN if either kind of
            distance is the same for all pairs, or there are fewer than two.
        mean_distance: :math:`D_m(i, k)` of Eq. 9 for the P = K(K − 1)/2 pairs i < k [P].
        variance_distance: :math:`D_{cv}(i, k)` of Eq. 10, in the same order [P].
    """

    spearman: float
    mean_distance: Tensor
    variance_distance: Tensor


@torch.no_grad()
def mean_variance_correlation(statistics: ClassStatistics) -> MeanVarianceCorrelation:
    r"""Rank correlation of :math:`D_m` and :math:`D_{cv}` over all pairs of classes.

    .. math::
        D_m(i, k) = \| \mu_i^2 - \mu_k^2 \|_2, \qquad D_{cv}(i, k) = \| \Sigma_i - \Sigma_k \|_2

    The premise of the neighbor correction is that it is positive. Every unordered pair of
    classes with at least two samples counts once (one number over all pairs, not an average over
    the rows of single classes); ties share their mean rank. Memory grows with K², some 2 GB at
    10,000 classes.

    Example:
        >>> statistics = ClassStatistics(num_classes=3, channels=1)
        >>> statistics.estimate(torch.tensor([[0.0], [2.0], [2.0], [6.0], [5.0], [11.0]]),
        ...                     torch.tensor([0, 0, 1, 1, 2, 2]))
        >>> mean_variance_correlation(statistics).spearman
        1.0
    """
    spread = statistics.class_size > 1
    mean = torch.pdist(statistics.mean[spread].square())
    variance = torch.pdist(statistics.variance[spread].flatten(1))
    return MeanVarianceCorrelation(_spearman(mean, variance), mean, variance)


def plot_mean_variance(result: MeanVarianceCorrelation) -> Figure:
    """Variance distance against mean distance, one point a pair of classes (Fig. 3).

    Needs matplotlib. With more than 20,000 pairs, an even selection is drawn.
    """
    from matplotlib.figure import Figure  # only wanted by those who plot

    every = max(1, -(-len(result.mean_distance) // _MAX_POINTS))
    figure = Figure(figsize=(5, 4), layout="constrained")
    axes = figure.subplots()
    axes.scatter(
        result.mean_distance[::every].cpu(),
        result.variance_distance[::every].cpu(),
        s=8,
        alpha=0.3,
        linewidths=0,
    )
    axes.set_xlabel("mean distance between classes")
    axes.set_ylabel("variance distance between classes")
    axes.set_title(f"Spearman correlation {result.spearman:.3f}")
    return figure


def _spearman(a: Tensor, b: Tensor) -> float:
    if len(a) < 2:
        return float("nan")
    ranks = torch.stack([_ranks(a), _ranks(b)])
    return float(torch.corrcoef(ranks)[0, 1])


def _ranks(values: Tensor) -> Tensor:
    """Ranks from 0, in float64; equal values share the mean of theirs."""
    _, inverse, counts = values.unique(return_inverse=True, return_counts=True)
    last = counts.cumsum(0).double()
    return (last - (counts + 1) / 2)[inverse]


def _read(path: Path) -> tuple[Tensor, Tensor]:
    """The arrays ``embeddings`` and ``labels`` of an .npz or .safetensors file."""
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file  # an optional dependency

            arrays = load_file(path)
        else:
            with np.load(path) as stored:
                arrays = {name: torch.from_numpy(stored[name]) for name in stored.files}
    except FileNotFoundError:
        raise
    except Exception as error:  # the readers raise errors of many kinds
        raise ValueError(
            f"Expected {path} to hold arrays, but got {type(error).__name__}: {error}"
        ) from error
    if missing := {"embeddings", "labels"} - arrays.keys():
        raise ValueError(f"Expected {path} to hold {sorted(missing)}, but it has {sorted(arrays)}")
    return arrays["embeddings"], arrays["labels"]


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line; see the module's docstring."""
    parser = argparse.ArgumentParser(
        prog="python -m bgl.augment.correlation",
        description="Rank correlation between mean and variance distances of classes.",
    )
    parser.add_argument("file", type=Path, help=".npz or .safetensors: embeddings, labels")
    parser.add_argument("--plot", type=Path, help="write the figure here (.png, .pdf, .svg)")
    options = parser.parse_args(arguments)

    embeddings, labels = _read(options.file)
    names, rows = labels.unique(return_inverse=True)
    statistics = ClassStatistics(len(names), embeddings.size(1))
    statistics.estimate(embeddings, rows)
    result = mean_variance_correlation(statistics)
    print(
        f"Spearman correlation of mean and variance distances: {result.spearman:.4f} "
        f"({len(result.mean_distance)} pairs of {int((statistics.class_size > 1).sum())} classes)"
    )
    if options.plot is not None:
        plot_mean_variance(result).savefig(options.plot, dpi=150)


if __name__ == "__main__":
    main()
