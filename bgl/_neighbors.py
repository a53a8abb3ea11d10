"""Nearest neighbours of unit vectors: exact, a block of rows at a time, or from a faiss index."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

if TYPE_CHECKING:  # numpy is not needed to import the layers
    import numpy as np
    from numpy.typing import NDArray

# Similarities held at a time by the exact search.
SEARCHED_PAIRS = 2**23
# An index is asked for so many gallery items whether it knows them.
INDEX_SAMPLES = 256


class Index(Protocol):
    """What is asked of a faiss index over the gallery's rows at unit length."""

    def search(self, x: NDArray[np.float32], k: int) -> tuple[NDArray, NDArray]:
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


def exact_search(x: Tensor, gallery: Tensor, count: int) -> Tensor:
    """The most similar gallery rows [R, count], a block of rows at a time."""
    count = min(count, len(gallery))
    found = torch.empty(len(x), count, dtype=torch.long, device=x.device)
    step = min(max(1, SEARCHED_PAIRS // len(gallery)), len(x))
    # one buffer: large blocks that come and go between small ones would tear the heap apart
    buffer = x.new_empty(step, len(gallery))
    for rows, result in zip(x.split(step), found.split(step), strict=True):
        score = torch.mm(rows, gallery.t(), out=buffer[: len(rows)])
        result.copy_(score.topk(count, dim=1).indices)
    return found


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
    parts = []
    for chunk in queries.split(512):
        score = unit[chunk] @ other.T
        if gallery is None:
            score[torch.arange(len(chunk)), chunk] = -torch.inf
        parts.append(score.topk(k, dim=1).indices)
    return torch.cat(parts) if parts else torch.empty(0, k, dtype=torch.long)
