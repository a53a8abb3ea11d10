"""Linear readouts: maps of embeddings, fitted in closed form on training images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypedDict

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
from bgl._precision import at_least_float32, exact_matmul
from bgl.metrics import retrieval_metrics

COVARIANCES = ("total", "within")
SHRINKAGE = 1.0  # where there are no validation classes to choose it on
SHRINKAGES = (0.1, 0.3, 1.0, 3.0, 10.0)
_ROWS = 8192  # converted to float64 at a time


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
        return exact_matmul(x.to(self.weight.dtype) - self.mean, self.weight.t())

    def extra_repr(self) -> str:
        """Show the dimensions."""
        return f"{self.weight.size(1)} -> {self.weight.size(0)}"


def fit_readout(
    x: Tensor,
    y: Tensor | None = None,
    *,
    covariance: str | None = None,
    shrinkage: float = SHRINKAGE,
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
    :math:`S^{-1/2}\, T\, S^{-1/2}`: the directions in which the classes differ most, relative to
    :math:`S`. All :math:`D = C` of them would only rotate the result, so then
    :math:`W = S^{-1/2}`, which small changes of the embeddings change little.

    ``"within"`` is linear discriminant analysis with shrinkage; ``"total"`` the whitening of
    `"Negative Evidences and Co-occurences in Image Retrieval: The Benefit of PCA and Whitening"
    <https://doi.org/10.1007/978-3-642-33709-3_55>`_ (Jégou and Chum, ECCV 2012), with shrinkage.
    The fit runs in float64, where ``x`` is.

    Args:
        x: Embeddings of training images, of an encoder that is trained already.
        y: Labels, for ``"within"`` only.
        covariance: ``"total"`` or ``"within"``; None: the latter where there are labels.
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
    check_real(shrinkage, "shrinkage", 0.0, exclusive=True)
    return _Moments(x, y, covariance).readout(shrinkage, _check_dim(dim, x))


ReadoutScore = TypedDict(
    "ReadoutScore", {"covariance": str, "shrinkage": float, "recall@1": float, "map@r": float}
)


class ReadoutChoice(NamedTuple):
    """What :func:`choose_readout` found: the best readout, and every candidate's figures."""

    readout: LinearReadout | None  # None: the plain embeddings were best
    best: ReadoutScore
    scores: list[ReadoutScore]  # on validation


def choose_readout(
    x: Tensor,
    y: Tensor,
    val_x: Tensor,
    val_y: Tensor,
    *,
    covariances: Sequence[str] = ("none", *COVARIANCES),
    shrinkages: Sequence[float] = SHRINKAGES,
    dim: int | None = None,
) -> ReadoutChoice:
    """Fit readouts on training images and choose among them by validation MAP@R.

    Validation classes should be other ones than the training classes, as the test classes are.

    Args:
        x: Embeddings of training images.
        y: Their labels.
        val_x: Embeddings of validation images.
        val_y: Their labels.
        covariances: Candidates, see :func:`fit_readout`; "none" stands for the plain embeddings.
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
    dim = _check_dim(dim, x)
    for shrinkage in shrinkages:
        check_real(shrinkage, "shrinkages", 0.0, exclusive=True)
    candidates: list[tuple[str, float, LinearReadout | None]] = []
    for covariance in covariances:
        if covariance == "none":
            candidates.append(("none", 0.0, None))
        else:
            moments = _Moments(x, y, covariance)
            candidates += [(covariance, rho, moments.readout(rho, dim)) for rho in shrinkages]
    scores: list[ReadoutScore] = []
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
    best = max(range(len(scores)), key=lambda i: scores[i]["map@r"])
    return ReadoutChoice(candidates[best][2], scores[best], scores)


class _Moments:
    """Means and covariances of embeddings, from which readouts of any shrinkage follow."""

    def __init__(self, x: Tensor, y: Tensor | None, covariance: str | None) -> None:
        check_matrix(x)
        check_finite(x, "x")
        if covariance is None:
            covariance = "total" if y is None else "within"
        check_choice(covariance, "covariance", COVARIANCES)
        if len(x) < 2:
            raise ValueError(f"Expected argument `x` to have at least two rows, but got {len(x)}")
        if covariance == "within" and y is None:
            raise ValueError(
                'Expected argument `y` to hold labels with covariance="within", but got None: '
                'pass them, or take covariance="total"'
            )
        self.dtype = at_least_float32(x).dtype
        everything = torch.zeros(len(x), dtype=torch.long, device=x.device)
        self.mean, self.total = _moments(x, everything)
        within = covariance == "within"
        spread = self.total
        if y is not None and within:
            spread = _moments(x, _classes(y, x))[1]
        self.average = spread.trace() / x.size(1)
        if self.average <= 0:
            raise ValueError(
                f"Expected argument `x` to vary{' within classes' if within else ''}, but all of "
                f"its {len(x)} rows are equal{' to the mean of their class' if within else ''}"
            )
        self.values, self.vectors = torch.linalg.eigh(spread)

    def readout(self, shrinkage: float, dim: int) -> LinearReadout:
        root = (self.values.clamp(min=0) + shrinkage * self.average).rsqrt()
        weight = (self.vectors * root) @ self.vectors.t()  # symmetric
        if dim < len(weight):
            axes = torch.linalg.eigh(weight @ self.total @ weight).eigenvectors
            weight = axes.flip(1)[:, :dim].t() @ weight  # eigh sorts from small to large
            # An eigenvector's sign is arbitrary: the largest entry of a row is made positive.
            weight *= weight.gather(1, weight.abs().argmax(1, keepdim=True)).sign()
        mean = self.mean[0].to(self.dtype)
        return LinearReadout(mean, weight.to(self.dtype).contiguous())


def _check_dim(dim: int | None, x: Tensor) -> int:
    """Return the dimension of the result."""
    check_matrix(x)
    if dim is not None and check_int(dim, "dim", 1) > x.size(1):
        raise ValueError(
            f"Expected argument `dim` to be at most the {x.size(1)} channels of `x`, but got {dim}"
        )
    return x.size(1) if dim is None else dim


def _classes(y: Tensor, x: Tensor) -> Tensor:
    """Number the classes of the rows of ``x``, on its device."""
    check_index_vector(y, len(x), "y")
    labels = y.to(x.device).unique(return_inverse=True)[1]
    if int(labels.bincount().max()) < 2:
        raise ValueError(
            "Expected argument `y` to have a class with at least two samples, but got "
            f'{len(y)} classes of one: covariance="within" measures how a class spreads'
        )
    return labels


def _moments(x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean of every class [K, C], and the mean covariance about them [C, C]."""
    blocks = list(zip(x.split(_ROWS), labels.split(_ROWS), strict=True))
    count = labels.bincount()
    means = x.new_zeros(len(count), x.size(1), dtype=torch.float64)
    for rows, own in blocks:
        means.index_add_(0, own, rows.double())
    means /= count.unsqueeze(1)
    covariance = means.new_zeros(x.size(1), x.size(1))
    for rows, own in blocks:
        centred = rows.double() - means[own]
        covariance.addmm_(centred.t(), centred)
    return means, covariance / len(x)
