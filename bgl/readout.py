"""Linear readouts: maps of embeddings, fitted in closed form on training images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from bgl._checks import (
    check_choice,
    check_finite,
    check_index_vector,
    check_int,
    check_matrix,
    check_real,
)
from bgl._precision import at_least_float32
from bgl.metrics import retrieval_metrics

COVARIANCES = ("total", "within")


class LinearReadout(nn.Module):
    r"""Map embeddings by :math:`W (x - \mu)`, each by itself; compare the results by cosine.

    Args:
        mean: What is subtracted, :math:`\mu`.
        weight: The map, :math:`W`.

    Shapes:
        - ``mean`` [C]; ``weight`` [D, C]
        - input [N, C]; output [N, D]

    Raises:
        ValueError: If an argument has the wrong type, rank or shape.

    Example:
        >>> readout = LinearReadout(torch.tensor([1.0, 1.0]), torch.tensor([[2.0, 0.0]]))
        >>> readout(torch.tensor([[2.0, 5.0]]))
        tensor([[2.]])
    """

    mean: Tensor
    weight: Tensor

    def __init__(self, mean: Tensor, weight: Tensor) -> None:
        super().__init__()
        check_matrix(weight, "weight", "[D, C]")
        if not isinstance(mean, Tensor) or mean.shape != weight.shape[1:]:
            raise ValueError(
                f"Expected argument `mean` to be a tensor of shape [{weight.size(1)}], one entry "
                f"per column of `weight`, but got {tuple(getattr(mean, 'shape', ()))}"
            )
        self.register_buffer("mean", mean.to(weight.dtype))
        self.register_buffer("weight", weight)

    def forward(self, x: Tensor) -> Tensor:
        """Map embeddings ``x`` [N, C] to [N, D]."""
        check_matrix(x)
        if x.size(1) != self.weight.size(1):
            raise ValueError(
                f"Expected argument `x` to have {self.weight.size(1)} channels, as the embeddings "
                f"that the readout was fitted on, but got {x.size(1)}"
            )
        return (x.to(self.weight.dtype) - self.mean) @ self.weight.t()

    def extra_repr(self) -> str:
        """Show the dimensions."""
        return f"{self.weight.size(1)} -> {self.weight.size(0)}"


def fit_readout(
    x: Tensor,
    y: Tensor | None = None,
    *,
    covariance: str = "total",
    shrinkage: float = 0.3,
    dim: int | None = None,
) -> LinearReadout:
    r"""Fit a whitening of embeddings to training images.

    Directions in which the embeddings vary much say little about which of two images is nearer.
    With the covariance :math:`T` of all embeddings about their mean :math:`\mu`, and either
    :math:`\Sigma = T` (``"total"``) or the mean covariance of a class about its own mean
    (``"within"``),

    .. math::
        S = \Sigma + \rho\,\tfrac1C \operatorname{tr}(\Sigma)\, I, \qquad
        W = V_D^\top S^{-1/2},

    where the columns of :math:`V_D` are the :math:`D` leading eigenvectors of
    :math:`S^{-1/2}\, T\, S^{-1/2}`. All :math:`D = C` of them only rotate the result; fewer keep
    the directions in which the classes differ most, relative to :math:`S`.

    ``"within"`` is linear discriminant analysis with shrinkage; ``"total"`` the whitening of
    `"Negative Evidences and Co-occurences in Image Retrieval: The Benefit of PCA and Whitening"
    <https://doi.org/10.1007/978-3-642-33709-3_55>`_ (Jégou and Chum, ECCV 2012), with shrinkage.
    The fit runs in float64.

    Args:
        x: Embeddings of training images, of an encoder that is trained already.
        y: Labels, for ``"within"`` only.
        covariance: ``"total"`` or ``"within"``.
        shrinkage: :math:`\rho > 0`, in mean variances of a channel. The larger, the closer the
            result is to the cosine of the centred embeddings.
        dim: Dimension :math:`D` of the result; None: as many as ``x`` has.

    Shapes:
        - ``x`` [N, C]; ``y`` [N] integers or None

    Raises:
        ValueError: If an argument has the wrong type, shape or range, ``x`` is not finite or
            does not vary, or ``"within"`` has no labels or no class with two samples.

    Example:
        >>> x = torch.tensor([[0.0, 0.0], [4.0, 0.0], [0.0, 1.0], [4.0, 1.0]])
        >>> fit_readout(x, shrinkage=1e-6)(x).abs()  # both directions count alike
        tensor([[1.0000, 1.0000],
                [1.0000, 1.0000],
                [1.0000, 1.0000],
                [1.0000, 1.0000]])
    """
    check_matrix(x)
    check_finite(x, "x")
    check_choice(covariance, "covariance", COVARIANCES)
    check_real(shrinkage, "shrinkage", 0.0, exclusive=True)
    channels = x.size(1)
    dim = channels if dim is None else check_int(dim, "dim", 1)
    if dim > channels:
        raise ValueError(
            f"Expected argument `dim` to be at most the {channels} channels of `x`, but got {dim}"
        )
    if len(x) < 2:
        raise ValueError(f"Expected argument `x` to have at least two rows, but got {len(x)}")
    wide = x.double()
    mean = wide.mean(0)
    total = _covariance(wide - mean)
    if covariance == "total":
        spread = total
    elif y is None:
        raise ValueError(
            'Expected argument `y` to hold labels with covariance="within", but got None: '
            'pass them, or take covariance="total"'
        )
    else:
        spread = _covariance(_within_classes(wide, y))
    average = spread.trace() / channels
    if average <= 0:
        raise ValueError(
            "Expected argument `x` to vary"
            + (" within classes" if covariance == "within" else "")
            + f", but all of its {len(x)} rows are equal"
            + (" to their class's mean" if covariance == "within" else "")
        )
    values, vectors = torch.linalg.eigh(spread)
    root = (values.clamp(min=0) + shrinkage * average).rsqrt()
    inverse_root = (vectors * root) @ vectors.t()  # symmetric
    axes = torch.linalg.eigh(inverse_root @ total @ inverse_root).eigenvectors
    weight = axes.flip(1)[:, :dim].t() @ inverse_root  # eigh sorts from small to large
    dtype = at_least_float32(x).dtype
    return LinearReadout(mean.to(dtype), weight.to(dtype).contiguous())


class ReadoutChoice(NamedTuple):
    """What :func:`choose_readout` found: the best readout, and every candidate's figures."""

    readout: LinearReadout | None  # None: the plain embeddings were best
    scores: list[dict[str, float | str]]  # covariance, shrinkage, recall@1, map@r


def choose_readout(
    x: Tensor,
    y: Tensor,
    val_x: Tensor,
    val_y: Tensor,
    *,
    covariances: Sequence[str] = COVARIANCES,
    shrinkages: Sequence[float] = (0.1, 0.3, 1.0, 3.0),
    dim: int | None = None,
) -> ReadoutChoice:
    """Fit readouts on training images and choose among them by validation MAP@R.

    The plain embeddings (``covariance`` "none") are among the candidates. Validation classes
    should be other ones than the training classes, as the test classes are.

    Args:
        x: Embeddings of training images.
        y: Their labels.
        val_x: Embeddings of validation images.
        val_y: Their labels.
        covariances: Candidates, see :func:`fit_readout`.
        shrinkages: Candidates.
        dim: Dimension of all of them.

    Shapes:
        - ``x`` [N, C]; ``y`` [N]; ``val_x`` [M, C]; ``val_y`` [M]

    Raises:
        ValueError: As :func:`fit_readout` and :func:`bgl.metrics.retrieval_metrics`.

    Example:
        >>> x, y = torch.randn(40, 8), torch.arange(40) // 4
        >>> choice = choose_readout(x, y, torch.randn(40, 8), y, shrinkages=(0.3,))
        >>> [score["covariance"] for score in choice.scores]
        ['none', 'total', 'within']
    """
    candidates: list[tuple[str, float, LinearReadout | None]] = [("none", 0.0, None)]
    candidates += [
        (covariance, rho, fit_readout(x, y, covariance=covariance, shrinkage=rho, dim=dim))
        for covariance in covariances
        for rho in shrinkages
    ]
    scores: list[dict[str, float | str]] = []
    for covariance, rho, readout in candidates:
        embeddings = val_x if readout is None else readout(val_x)
        found = retrieval_metrics(embeddings, val_y, k=(1,))
        scores.append(
            {
                "covariance": covariance,
                "shrinkage": rho,
                "recall@1": found["recall@1"],
                "map@r": found["map@r"],
            }
        )
    best = max(range(len(scores)), key=lambda i: float(scores[i]["map@r"]))
    return ReadoutChoice(candidates[best][2], scores)


def _covariance(centred: Tensor) -> Tensor:
    return centred.t() @ centred / len(centred)


def _within_classes(x: Tensor, y: Tensor) -> Tensor:
    """Subtract the mean of its class from every row."""
    check_index_vector(y, len(x), "y")
    labels = y.unique(return_inverse=True)[1]
    if int(labels.bincount().max()) < 2:
        raise ValueError(
            "Expected argument `y` to have a class with at least two samples, but got "
            f'{len(y)} classes of one: covariance="within" measures how a class spreads'
        )
    classes = int(labels.max()) + 1
    sums = x.new_zeros(classes, x.size(1)).index_add(0, labels, x)
    return x - (sums / labels.bincount().unsqueeze(1))[labels]
