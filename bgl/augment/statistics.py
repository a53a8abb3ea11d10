"""Mean and spread of every class in the embedding space, kept up to date during training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from bgl._checks import (
    as_tensor,
    check_choice,
    check_index_vector,
    check_int,
    check_matrix,
    check_real,
    readable,
)
from bgl.hyperbolic import from_poincare_ball

# Largest block of squared deviations or outer products, in elements: 1 MiB of float32, which a
# CPU keeps in its cache.
_CHUNK = 2**18


class ClassStatistics(nn.Module):
    r"""Running mean, covariance and count of each class (Eq. 7-8 of Fu et al., IAA, 2022).

    A call brings :math:`n_k` samples of class :math:`k` with mean :math:`m_k` and biased
    (co)variance :math:`V_k`, and the buffers move by

    .. math::
        w_k &= \max\left(\frac{n_k}{n_k + N_k},\ 1 - \text{momentum}\right) \\
        \Sigma_k &\leftarrow (1 - w_k) \Sigma_k + w_k V_k
            + w_k (1 - w_k) (\mu_k - m_k)(\mu_k - m_k)^\top \\
        \mu_k &\leftarrow (1 - w_k) \mu_k + w_k m_k, \qquad N_k \leftarrow N_k + n_k

    Classes without samples in the call stay as they are. With ``momentum=1`` the result is
    exactly the mean and covariance of everything seen; smaller values forget faster, because
    the network moves on. The momentum comes from the released code, not from the paper.

    No gradient is kept. Inputs of any precision are summed in the dtype of the buffers, around
    the mean (two passes). Time and memory of a call are O(N·D + K), or O(N·D² + K) with full
    covariances: only classes that may have samples in it are touched.

    Where `torch.distributed` runs, each process passes its own share of the samples and every
    process ends with the statistics of all of them.

    Args:
        num_classes: Number K of classes.
        channels: Number D of embedding channels.
        momentum: Largest share of the old statistics that survives a call, in [0, 1].
        covariance: ``"diagonal"`` keeps the variance of each channel [K, D]; ``"full"`` keeps
            matrices [K, D, D], for moderate K and D.
        labels: The K distinct integers that occur as labels; by default 0 to K − 1. Row k of
            the buffers belongs to the k-th smallest (see the buffer ``labels``).
        curvature: c, if the embeddings are points of the Poincaré ball of curvature −c: all
            statistics are those of :func:`bgl.hyperbolic.from_poincare_ball` of them, in the
            tangent space at the origin. None for embeddings of a Euclidean space.

    Attributes:
        mean: [K, D], in units of the embedding.
        variance: [K, D] or [K, D, D], in squared units of the embedding; biased (÷ n).
        offset: [K, D], from the mean to the :attr:`center`; 0 but for single samples.
        count: Samples absorbed so far [K], int64. Grows with every call, so it counts a training
            set twice after two epochs; :attr:`class_size` does not.

    Example:
        >>> statistics = ClassStatistics(num_classes=3, channels=2)
        >>> statistics.update(torch.tensor([[0.0, 1.0], [2.0, 1.0], [5.0, 5.0]]),
        ...                   torch.tensor([0, 0, 2]))
        >>> statistics.mean.tolist()
        [[1.0, 1.0], [0.0, 0.0], [5.0, 5.0]]
        >>> statistics.variance[0].tolist(), statistics.count.tolist()
        ([1.0, 0.0], [2, 0, 1])
    """

    mean: Tensor
    variance: Tensor
    offset: Tensor
    count: Tensor
    estimated_size: Tensor
    labels: Tensor

    def __init__(
        self,
        num_classes: int,
        channels: int,
        momentum: float = 0.2,
        covariance: str = "diagonal",
        labels: Sequence[int] | Tensor | None = None,
        curvature: float | None = None,
    ) -> None:
        super().__init__()
        self.num_classes = check_int(num_classes, "num_classes", 1)
        self.channels = check_int(channels, "channels", 1)
        self.momentum = check_real(momentum, "momentum", 0.0, 1.0)
        self.covariance = check_choice(covariance, "covariance", ("diagonal", "full"))
        if curvature is not None:
            curvature = check_real(curvature, "curvature", 0.0, exclusive=True)
        self.curvature = curvature
        known = torch.arange(num_classes) if labels is None else as_tensor(labels, "labels")
        check_index_vector(known, num_classes, "labels")
        known = known.long().sort().values
        if not bool((known.diff() > 0).all()):
            raise ValueError("Expected argument `labels` to hold distinct integers")
        spread = (channels,) if covariance == "diagonal" else (channels, channels)
        self.register_buffer("labels", known)
        self.register_buffer("mean", torch.zeros(num_classes, channels))
        self.register_buffer("variance", torch.zeros(num_classes, *spread))
        self.register_buffer("offset", torch.zeros(num_classes, channels))
        self.register_buffer("count", torch.zeros(num_classes, dtype=torch.long))
        # -1: no estimate over a whole set has been made yet.
        self.register_buffer("estimated_size", torch.full((num_classes,), -1))

    @property
    def class_size(self) -> Tensor:
        """Samples per class n_k [K]: those of the latest :meth:`estimate`, else ``count``."""
        return self.count.where(self.estimated_size < 0, self.estimated_size)

    @property
    def center(self) -> Tensor:
        """Where each class is [K, D]: its mean, or the single sample found by :meth:`estimate`."""
        return self.mean + self.offset

    @property
    def version(self) -> tuple[tuple[int, int], ...]:
        """Changes with every change of the buffers: calls, loading, moves, in-place edits."""
        buffers = (self.mean, self.variance, self.offset, self.count, self.estimated_size)
        return tuple((id(buffer), buffer._version) for buffer in buffers)

    def update(self, z: Tensor, y: Tensor, *, shared: bool = True) -> None:
        """Absorb the samples of one training step.

        Args:
            z: Embeddings [N, D], before any normalisation.
            y: Labels [N].
            shared: Whether each of several processes has its own share of the samples; False:
                all have the same ones, and nothing is exchanged.

        Raises:
            ValueError: If shapes or dtypes are wrong, or a label is unknown (see :meth:`rows`).
        """
        self._absorb(z, y, smallest=1, shared=shared)

    def estimate(self, z: Tensor, y: Tensor) -> None:
        """Absorb a whole training set, embedded anew.

        Sets :attr:`class_size` to the sizes found. Like :meth:`update`, except that a class with
        a single sample keeps the mean and covariance that it has (0 at first), as in the
        released code: one sample does not say how wide a class is. It does say where it is, and
        becomes the class's :attr:`center`, from which its neighbours are found.

        Args:
            z: Embeddings [N, D], before any normalisation; with several processes, the share
                of this process, no sample in two shares.
            y: Labels [N].

        Raises:
            ValueError: If shapes or dtypes are wrong, or a label is unknown (see :meth:`rows`).
        """
        self.estimated_size.copy_(self._absorb(z, y, smallest=2, shared=True))

    def check(self, z: Tensor, y: Tensor) -> None:
        """Raise a ValueError unless z [N, D] and y [N] have the right shapes and dtypes."""
        check_matrix(z, "z", "[N, D]")
        if z.size(1) != self.channels:
            raise ValueError(
                f"Expected argument `z` to have {self.channels} channels, but got {z.size(1)}"
            )
        check_index_vector(y, z.size(0), "y")

    def rows(self, y: Tensor) -> Tensor:
        """Find the row of the buffers that belongs to each label [N].

        An unknown label raises a ValueError on the CPU. Elsewhere, looking would wait for the
        device: there it becomes row K, one past the end, which stops the indexing that follows
        with a device-side error instead of falling into a wrong class.
        """
        rows = torch.searchsorted(self.labels, y.long()).clamp(max=self.num_classes - 1)
        known = self.labels[rows] == y
        if readable(y) and not known.all():
            strangers = y[~known].unique().tolist()
            raise ValueError(
                f"Expected argument `y` to hold the {self.num_classes} labels known at "
                f"construction, but got {strangers[:10]}"
            )
        return rows.where(known, self.num_classes)

    @torch.no_grad()
    def _absorb(self, z: Tensor, y: Tensor, smallest: int, shared: bool = True) -> Tensor:
        """Blend in classes of at least ``smallest`` samples; return the samples per class [K]."""
        self.check(z, y)
        if self.curvature is not None:
            z = from_poincare_ball(z, c=self.curvature)
        rows, z = self.rows(y), z.to(self.mean.dtype)
        counts = torch.zeros_like(self.count).index_add_(0, rows, torch.ones_like(rows))
        counts = _sum_over_processes(counts, shared)
        total = self.num_classes if shared and _several_processes() else len(z)
        touched = self._touched(counts, rows, min(total, self.num_classes))
        classes = touched.classes

        n, before = counts[classes], self.mean[classes]
        size = n.clamp(min=1).to(z.dtype).unsqueeze(1)
        mean = torch.zeros_like(before).index_add_(0, touched.place, z)
        mean = _sum_over_processes(mean, shared).div_(size)
        scatter = self._scatter(z, mean, touched.place, torch.zeros_like(self.variance[classes]))
        scatter = _sum_over_processes(scatter, shared)

        share = n.to(z.dtype) / (n + self.count[classes]).clamp(min=1)
        share = share.clamp(min=1 - self.momentum).masked_fill(n < smallest, 0)
        shift = mean - before
        after = before.addcmul(shift, share.unsqueeze(1))
        alone = (n < smallest).unsqueeze(1)
        offset = torch.where(alone, mean - after, torch.zeros_like(mean))
        offset = torch.where((n > 0).unsqueeze(1), offset, self.offset[classes])
        if self.covariance == "full":
            share, size = share.view(-1, 1, 1), size.unsqueeze(2)
            drift = shift.unsqueeze(2) * shift.unsqueeze(1)
        else:
            share, drift = share.unsqueeze(1), shift.square_()
        variance = (self.variance[classes] * (1 - share)).addcmul_(share / size, scatter)
        variance.addcmul_(share * (1 - share), drift)

        self.mean[classes] = after[touched.source]
        self.offset[classes] = offset[touched.source]
        self.variance[classes] = variance[touched.source]
        self.count += counts
        return counts

    def _touched(self, counts: Tensor, rows: Tensor, most: int) -> _Touched:
        """Find the classes that have samples, at ``most`` that many, without reading a value."""
        everything = slice(None)
        if most == self.num_classes:
            return _Touched(everything, rows, everything)
        present = counts > 0
        place = present.cumsum(0) - 1
        numbers = torch.arange(self.num_classes, device=rows.device)
        classes = numbers.new_zeros(most + 1)  # the last place is for all that are absent
        classes.scatter_(0, place.where(present, most), numbers)
        # places left over repeat what the first one writes
        places = numbers[:most]
        source = places.where(places < present.sum(), 0)
        return _Touched(classes[source], place[rows], source)

    def _scatter(self, z: Tensor, mean: Tensor, rows: Tensor, total: Tensor) -> Tensor:
        """Add up the squared deviations of each row [K, D], or outer products [K, D, D]."""
        step = max(1, _CHUNK // total[0].numel())
        for part, row in zip(z.split(step), rows.split(step), strict=True):
            d = mean.index_select(0, row).sub_(part)
            square = d.square_() if total.dim() == 2 else d.unsqueeze(2) * d.unsqueeze(1)
            total.index_add_(0, row, square)
        return total

    def extra_repr(self) -> str:
        return (
            f"{self.num_classes}, {self.channels}, momentum={self.momentum}, "
            f"covariance={self.covariance!r}"
        )


class _Touched(NamedTuple):
    """The classes that a call may change."""

    classes: Tensor | slice  # their rows in the buffers [M]
    place: Tensor  # of the class of each sample, among them [N]
    source: Tensor | slice  # where the new values of each are [M]


def _several_processes() -> bool:
    return dist.is_available() and dist.is_initialized()


def _sum_over_processes(x: Tensor, shared: bool) -> Tensor:
    """Sum shares over all processes, in place; nothing to do where there is only one."""
    if shared and _several_processes():
        dist.all_reduce(x)
    return x
