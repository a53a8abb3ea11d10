"""Nearest neighbours of unit vectors: exact, a block of rows at a time, or from a faiss index."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from bgl._precision import exact_matmul
from bgl._sizes import converted_block, score_block

if TYPE_CHECKING:  # numpy is not needed to import the layers
    import numpy as np
    from numpy.typing import NDArray

# An index is asked for so many gallery items whether it knows them.
INDEX_SAMPLES = 256

Nearest = tuple[Tensor, Tensor]  # scores and columns [R, kept], nearest first


class Index(Protocol):
    """What is asked of a faiss index over the gallery's rows at unit length."""

    def search(
        self, x: NDArray[np.float32], k: int
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Similarities or distances, and row numbers (−1 for none), both ``[len(x), k]``."""
        ...

    def add(self, x: NDArray[np.float32]) -> None:
        """Take in further rows."""
        ...


def check_index(index: Index, x: Tensor) -> None:
    """Raise unless an index seems to hold the rows of ``x``: by its size, and by asking it."""
    if not hasattr(index, "search") or not hasattr(index, "add"):
        raise ValueError(
            f"Expected argument `index` to have faiss's `search` and `add`, but got {index!r}"
        )
    for attribute, expected in (("ntotal", len(x)), ("d", x.size(1))):
        got = getattr(index, attribute, expected)
        if got != expected:
            raise ValueError(
                f"Expected argument `index` to hold the gallery, {list(x.shape)}, "
                f"but got an index with {attribute}={got}"
            )
    some = x[:: max(1, len(x) // INDEX_SAMPLES)]
    found = torch.from_numpy(index.search(to_numpy(some), 2)[1]).to(x.device).long()
    similarity = torch.einsum("rc,rpc->rp", some, x[found.clamp(min=0)])
    known = (similarity.masked_fill(found < 0, -1).amax(1) > 0.999).float().mean()
    if known < 0.5:
        raise ValueError(
            "Expected argument `index` to hold the rows of the gallery at unit length and in its "
            f"order, but it finds only {known:.0%} of {len(some)} rows when asked for them"
        )


def to_numpy(x: Tensor) -> NDArray[np.float32]:
    """Rows as faiss takes them."""
    return x.detach().cpu().float().numpy()


def exact_search(x: Tensor, gallery: Tensor | Converted, count: int) -> Tensor:
    """The most similar gallery rows [R, min(count, G)], nearest first."""
    return smallest_products(Converted(x, torch.neg), gallery, count)[1]


class Converted:
    """Rows that are converted whenever they are asked for: in memory is one block of them.

    Args:
        rows: Rows [N, C], perhaps a file's that is mapped into memory.
        convert: What makes each block of them another one.
        device: Where to.
    """

    def __init__(
        self,
        rows: Tensor,
        convert: Callable[[Tensor], Tensor],
        device: str | torch.device | None = None,
    ) -> None:
        self.rows, self.convert, self.device = rows, convert, device or rows.device

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, part: slice | Tensor) -> Tensor:
        return self.convert(self.rows[part].to(self.device))


def smallest_products(
    left: Tensor | Converted,
    right: Tensor | Converted,
    kept: int,
    without: Tensor | None = None,
) -> Nearest:
    """The ``kept`` smallest inner products of every row of ``left`` with the rows of ``right``.

    They are computed a block of rows and columns at a time. ``without`` names a column for each
    row [R] whose product counts as infinite.
    """
    rows, columns = len(left), len(right)
    kept = min(kept, columns)
    some = left[:1]
    values = some.new_empty(rows, kept)
    found = torch.empty(rows, kept, dtype=torch.long, device=some.device)
    height, width = score_block(some.device, rows, columns)
    if isinstance(right, Converted):
        height, width = converted_block(some.device, rows, columns, some.size(1))
    width = max(width, kept)
    # one buffer: large blocks that come and go between small ones would tear the heap apart
    buffer = some.new_empty(height * width)
    for top in range(0, rows, height):
        block = slice(top, min(top + height, rows))
        asked = left[block]
        best: Nearest | None = None
        for first in range(0, columns, width):
            part = right[first : first + width]
            scores = buffer[: (block.stop - top) * len(part)].view(-1, len(part))
            exact_matmul(asked, part.t(), out=scores)
            if without is not None:
                own = without[block, None] - first
                outside = (own < 0) | (own >= len(part))
                own = own.clamp(0, len(part) - 1)
                kept_score = scores.gather(1, own).where(outside, torch.inf)
                scores.scatter_(1, own, kept_score)
            new, places = smallest(scores, kept)
            other = new, places + first
            best = other if best is None else merge(best, other, kept)
        if best is not None:
            values[block], found[block] = best
    return values, found


def smallest(scores: Tensor, kept: int) -> Nearest:
    """The smallest scores of each row, in order, and their columns.

    On a CPU the row is not sorted: they lie in the ``kept`` groups of columns with the smallest
    minima, or among the columns left over at the end; a group holds columns at equal distances.
    """
    columns = scores.size(1)
    kept = min(kept, columns)
    size = math.isqrt(columns // (4 * kept))  # the two selections then take about as long
    if size < 2 or scores.is_cuda:
        values, nearest = scores.topk(kept, dim=1, largest=False)
        return values, nearest
    groups = columns // size
    # Minima are taken over the slower dimension of the memory, also of a transposed matrix.
    if scores.stride(0) == 1:
        minima = scores.t()[: size * groups].unflatten(0, (size, groups)).amin(dim=0).t()
    else:
        minima = scores[:, : size * groups].unflatten(1, (size, groups)).amin(dim=1)
    best = minima.topk(kept, dim=1, largest=False, sorted=False).indices
    offset = torch.arange(size, device=scores.device) * groups
    left_over = torch.arange(size * groups, columns, device=scores.device)
    candidates = torch.cat(
        [(best[:, :, None] + offset).flatten(1), left_over.expand(len(scores), -1)], dim=1
    )
    values, position = scores.gather(1, candidates).topk(kept, dim=1, largest=False)
    return values, candidates.gather(1, position)


def merge(one: Nearest, other: Nearest, kept: int) -> Nearest:
    """The smallest of what was found in two sets of columns."""
    values = torch.cat([one[0], other[0]], dim=1)
    columns = torch.cat([one[1], other[1]], dim=1)
    values, position = values.topk(min(kept, values.size(1)), dim=1, largest=False)
    return values, columns.gather(1, position)


def without_self(found: Tensor, first: int = 0) -> Tensor:
    """Drop row i's own number ``first + i``, or the last where it is not among the found."""
    own = found == torch.arange(first, first + len(found), device=found.device)[:, None]
    own[:, -1] |= ~own.any(1)
    return found[~own].view(len(found), -1)


@torch.no_grad()
def nearest(x: Tensor, queries: Tensor, k: int, gallery: Tensor | None = None) -> Tensor:
    """The ``k`` nearest rows of ``gallery`` by cosine [Q, k] of the rows ``queries`` of ``x``;
    without a gallery the nearest other rows of ``x``."""
    unit = torch.nn.functional.normalize(x.float())
    other = unit if gallery is None else torch.nn.functional.normalize(gallery.float())
    queries = queries.to(x.device)
    own = queries if gallery is None else None
    return smallest_products(-unit[queries], other, k, own)[1]
