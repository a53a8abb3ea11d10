"""Batches with the same number of samples of every class in them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize
from torch.utils.data import Sampler

from bgl._checks import as_tensor, check_finite, check_index_vector, check_int, check_matrix
from bgl._neighbors import smallest_products
from bgl._registry import Registry

# Up to so many classes left the nearest of one are searched when it is drawn; of more, the nearest
# of many at a time, by matrix products.
SEARCHED_ALONE = 2048


class BatchSampler(Protocol):
    """What a run asks of a sampler: full batches of indices, the same for the same epoch."""

    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[list[int]]: ...
    def set_epoch(self, epoch: int, /) -> None: ...


@runtime_checkable
class ClassPositions(Protocol):
    """A sampler that is told where the classes are, and keeps it in checkpoints."""

    def set_positions(self, positions: Tensor, /) -> None: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any], /) -> None: ...


class ClassBalancedSampler(Sampler[list[int]]):
    r"""Sample batches of ``batch_size / per_class`` classes with ``per_class`` samples each.

    A batch sampler: hand it to ``DataLoader(batch_sampler=...)`` and call :meth:`set_epoch`
    before every epoch, as with PyTorch's ``DistributedSampler``. An epoch depends on
    ``(seed, epoch)`` only, and on the positions (see below); the global random generators are
    neither read nor changed.

    Classes are drawn in shuffled passes, so each is seen once before any is seen twice and every
    epoch covers all of them. The samples of a class are drawn the same way: all are used before
    one repeats, and no batch holds a sample twice unless its class has fewer than
    ``per_class``. Such a class is drawn with repeats, each of its samples as often as the others
    (to within one), and a ``UserWarning`` at construction counts these classes.

    With ``neighbors`` a pass consists of groups of *look-alikes*: a class c drawn at random, then
    the ``neighbors`` classes d not yet drawn that are most similar to it,

    .. math::
        s(c, d) = \cos(\mu_c - \bar\mu,\ \mu_d - \bar\mu), \qquad
        \bar\mu = \tfrac1K \textstyle\sum_c \mu_c ,

    by their :meth:`set_positions` :math:`\mu`. What is hard to tell apart meets in a batch, and a
    batch graph finds its hard neighbours there. The rest holds as above.

    Nearest classes in a batch are from `"Graph Sampling Based Deep Metric Learning for
    Generalizable Person Re-Identification" <https://arxiv.org/abs/2104.01546>`_.

    Args:
        labels: Class of every sample, any integers, of shape [N].
        batch_size: Samples in a batch; a multiple of ``per_class``.
        per_class: Samples of each class in a batch.
        seed: A non-negative integer.
        batches_per_epoch: Length of an epoch; by default as many batches as N samples fill, or
            more if it takes more to cover every class.
        neighbors: Similar classes that follow each class drawn; 0: classes at random. They are
            so too until :meth:`set_positions` is called.

    Raises:
        ValueError: If ``labels`` is not an integer vector with at least one entry,
            ``batch_size`` is not a multiple of ``per_class``, there are fewer classes than a
            batch holds, or ``batches_per_epoch`` is too small to cover all classes.

    Example:
        >>> sampler = ClassBalancedSampler([0, 0, 1, 1, 2, 2], batch_size=4, per_class=2)
        >>> len(sampler), [len(batch) for batch in sampler]
        (2, [4, 4])
    """

    def __init__(
        self,
        labels: Tensor | Sequence[int],
        batch_size: int,
        per_class: int,
        seed: int = 0,
        batches_per_epoch: int | None = None,
        neighbors: int = 0,
    ) -> None:
        labels = as_tensor(labels, "labels")
        check_index_vector(labels, labels.numel(), "labels")
        if labels.numel() == 0:
            raise ValueError("Expected argument `labels` to have at least one entry, but got 0")
        self.batch_size = check_int(batch_size, "batch_size", 1)
        self.per_class = check_int(per_class, "per_class", 1)
        self.seed = check_int(seed, "seed", 0)
        self.neighbors = check_int(neighbors, "neighbors", 0)
        self.epoch = 0
        self._positions: Tensor | None = None
        if batch_size % per_class != 0:
            raise ValueError(
                "Expected argument `batch_size` to be a multiple of `per_class` "
                f"({per_class}), got {batch_size}"
            )
        self.classes_per_batch = batch_size // per_class
        self.classes, self._members = _members(labels)
        if len(self.classes) < self.classes_per_batch:
            raise ValueError(
                f"Expected argument `labels` to have at least {self.classes_per_batch} classes "
                f"(`batch_size` {batch_size} / `per_class` {per_class}), "
                f"but got {len(self.classes)}"
            )
        to_cover = -(-len(self.classes) // self.classes_per_batch)
        if batches_per_epoch is None:
            batches_per_epoch = max(-(-labels.numel() // batch_size), to_cover)
        elif check_int(batches_per_epoch, "batches_per_epoch", 1) < to_cover:
            raise ValueError(
                f"Expected argument `batches_per_epoch` to be at least {to_cover}, to cover "
                f"{len(self.classes)} classes with {self.classes_per_batch} in a batch, "
                f"got {batches_per_epoch}"
            )
        self.batches_per_epoch = batches_per_epoch
        self._warn_small_classes()

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration yields.

        Raises:
            ValueError: If ``epoch`` is not a non-negative integer.
        """
        self.epoch = check_int(epoch, "epoch", 0)

    def set_positions(self, positions: Tensor) -> None:
        """Set the positions of the classes, for instance their mean features, which are copied.

        Args:
            positions: [K, C], a row for each of :attr:`classes` (labels in ascending order).

        Raises:
            ValueError: If ``positions`` is no such matrix, or not finite.
        """
        check_matrix(positions, "positions", "[K, C]")
        if len(positions) != len(self.classes):
            raise ValueError(
                f"Expected argument `positions` to have a row for each of {len(self.classes)} "
                f"classes, got {len(positions)}"
            )
        check_finite(positions, "positions")
        self._positions = positions.detach().cpu().to(torch.float32, copy=True)

    def state_dict(self) -> dict[str, Tensor | None]:
        """Return the positions, on which an epoch depends besides seed and epoch."""
        return {"positions": self._positions}

    def load_state_dict(self, state: dict[str, Tensor | None]) -> None:
        """Set the positions of a state."""
        self._positions = None
        if state["positions"] is not None:
            self.set_positions(state["positions"])

    def __len__(self) -> int:
        """Return the number of batches in an epoch."""
        return self.batches_per_epoch

    def __iter__(self) -> Iterator[list[int]]:
        """Yield lists of ``batch_size`` indices, the samples of a class next to each other."""
        rng = np.random.default_rng([self.seed, self.epoch])
        classes = _Shuffle(len(self.classes), rng)
        if self.neighbors and self._positions is not None:
            classes = _GroupedShuffle(self._positions, self.neighbors, rng)
        samples = [_Shuffle(len(members), rng) for members in self._members]
        for _ in range(self.batches_per_epoch):
            batch: list[int] = []
            for c in classes.draw(self.classes_per_batch):
                batch.extend(self._members[c][samples[c].draw(self.per_class)].tolist())
            yield batch

    def _warn_small_classes(self) -> None:
        small = [c for c, members in enumerate(self._members) if len(members) < self.per_class]
        if small:
            warnings.warn(
                f"{len(small)} of {len(self.classes)} classes have fewer than per_class = "
                f"{self.per_class} samples, which are repeated inside a batch; for example "
                f"class {self.classes[small[0]]} with {len(self._members[small[0]])}",
                UserWarning,
                stacklevel=3,
            )


class _Shuffle:
    """Draw 0 … size-1 in shuffled passes: each number once before any comes again."""

    def __init__(self, size: int, rng: np.random.Generator) -> None:
        self.size = size
        self.rng = rng
        self.queue: list[int] = []

    def one_pass(self) -> list[int]:
        """Draw every number once."""
        return self.rng.permutation(self.size).tolist()

    def draw(self, count: int) -> list[int]:
        """Draw the next ``count`` numbers: distinct ones if ``count`` ≤ ``size``."""
        rounds, count = divmod(count, self.size)
        # Whole rounds use every number equally often and need no place in the queue. They are
        # shuffled all the same: losses may pair the i-th and j-th sample of each class.
        drawn: list[int] = []
        for _ in range(rounds):
            drawn += self.one_pass()
        if len(self.queue) < count:
            self._shuffle_behind(count)
        drawn += self.queue[:count]
        del self.queue[:count]
        return drawn

    def _shuffle_behind(self, count: int) -> None:
        """Queue another pass; numbers left over from the last one don't come up in this draw."""
        fresh = self.one_pass()
        left = set(self.queue)
        fill = [number for number in fresh if number not in left][: count - len(left)]
        used = set(fill)
        self.queue += fill + [number for number in fresh if number not in used]


class _GroupedShuffle(_Shuffle):
    """Draw passes that consist of groups: a number at random, then its nearest ones left."""

    def __init__(self, positions: Tensor, neighbors: int, rng: np.random.Generator) -> None:
        super().__init__(len(positions), rng)
        self.unit = normalize(positions - positions.mean(dim=0), dim=1)
        self.neighbors = neighbors

    def one_pass(self) -> list[int]:
        order = np.array(super().one_pass())
        left = np.ones(self.size, dtype=bool)
        groups: list[list[int]] = []
        found: dict[int, np.ndarray] = {}
        for place, first in enumerate(order.tolist()):
            if not left[first]:
                continue
            if first not in found and left.sum() > SEARCHED_ALONE:
                found = self._look_ahead(order[place:], left)
            left[first] = False
            nearest = found.get(first, order[:0])
            nearest = nearest[left[nearest]][: self.neighbors]
            if len(nearest) < self.neighbors:
                nearest = self._nearest(first, left)
            left[nearest] = False
            groups.append([first, *nearest.tolist()])
        # the last groups, made of what was left, are no worse placed than the first
        return [number for g in self.rng.permutation(len(groups)) for number in groups[g]]

    def _nearest(self, first: int, left: np.ndarray) -> np.ndarray:
        """Find the nearest of those that are left."""
        unit, others = self.unit.numpy(), np.flatnonzero(left)
        order = np.argsort(-(unit[others] @ unit[first]), kind="stable")
        return others[order[: self.neighbors]]

    def _look_ahead(self, order: np.ndarray, left: np.ndarray) -> dict[int, np.ndarray]:
        """Find the nearest of those that are left, for the next that may come first.

        So few at a time that they take a small share of each other's nearest, and some to spare.
        """
        others = np.flatnonzero(left)
        count = len(others) // (16 * (self.neighbors + 1)) + 1
        firsts = order[left[order]][:count]
        unit = self.unit[others]
        found = smallest_products(-self.unit[firsts], unit, 4 * self.neighbors + 1)[1]
        return dict(zip(firsts.tolist(), others[found.numpy()], strict=True))


def _members(labels: Tensor) -> tuple[list[int], list[np.ndarray]]:
    """Find the distinct labels in ascending order and the indices of the samples of each."""
    values = labels.cpu().numpy()
    order = np.argsort(values, kind="stable")
    classes, starts = np.unique(values[order], return_index=True)
    return classes.tolist(), np.split(order, starts[1:])


#: Batch samplers by name, built from labels, batch size, samples of each class, seed and batches in
#: an epoch (or None), with the option ``neighbors`` if there is one.
SAMPLERS: Registry[Callable[..., BatchSampler]] = Registry(
    "sampler", 5, {"class-balanced": ClassBalancedSampler}
)
