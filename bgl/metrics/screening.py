"""Nearest items from float32 products, wherever their rounding cannot change the result."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.nn.functional import normalize

from bgl._neighbors import Converted, Nearest, merge, smallest, smallest_products
from bgl._precision import central_point, distance_factors, exact_matmul
from bgl._sizes import fits, fitting_scores

# Items kept beyond the depth asked for, so that the nearest one left out lies clearly behind.
SPARE = 4
# Up to this many items kept, a set against itself is computed once for both (i, j) and (j, i):
# keeping the nearest of a column, block by block, costs less than half the product.
SYMMETRIC_KEPT = 64

# left and right factors of some points [B, W], and what the order of their products leaves open
# [B, 1] (see `Rankable`)
Factors = tuple[Tensor, Tensor, Tensor]


@runtime_checkable
class Rankable(Protocol):
    """A distance whose order is that of a cheaper form, such as ``HyperbolicDistance``."""

    def rank_key(self, query_emb: Tensor, ref_emb: Tensor) -> Tensor:
        """Compute keys ``[Q, R]`` in the order of the distances."""
        ...

    def rank_factors(self, points: Tensor) -> Factors:
        r"""Compute left and right factors ``[N, W]``, of equal norms, blurs :math:`b` ``[N, 1]``.

        The scores :math:`s_{ij} = \langle left_i, right_j \rangle` are symmetric. For each query
        i they order two items as the distance does (smaller is nearer) if the scores differ by
        more than the share :math:`(1 + b_i \max_j b_j)^2 - 1` of the smaller one.
        """
        ...


class Screen:
    r"""Finds nearest items by float32 products and knows which orders rounding may have changed.

    A product of factors :math:`a, b` of W entries, each rounded to float32, and summed in any
    order, is off by at most :math:`e = (W + 4)\,2^{-24}\,|a|\,|b|` (Higham, "Accuracy and
    Stability of Numerical Algorithms", 2002, section 3.1). Two items whose scores differ by more
    than :math:`2e` are in their exact order.

    Args:
        distance: ``"cosine"``, ``"euclidean"`` or a :class:`Rankable`.
        gallery: Embeddings ``[G, C]``.
    """

    def __init__(self, distance: str | Rankable, gallery: Tensor) -> None:
        self.gallery = gallery
        self.factors = _factors(distance, gallery)
        width = self.left(gallery[:1]).size(1)
        kept = fits(gallery.device, len(gallery) * width)
        rights, blurs, norms = [], [], []
        for points in converted(gallery):
            _, right, blur = self.factors(points)
            if kept:
                rights.append(right.float())
            blurs.append(blur.max())
            norms.append(torch.linalg.vector_norm(right, dim=1).max())
        # of a gallery beyond memory only as many rows as are looked at
        self.right = torch.cat(rights) if kept else Converted(gallery, self._right_of)
        self.most_blur = torch.stack(blurs).max()
        rounding = (width + 4) * torch.finfo(torch.float32).eps / 2
        self.rounding = rounding * torch.stack(norms).max()

    def _right_of(self, points: Tensor) -> Tensor:
        return self.factors(points.double())[1].float()

    def left(self, query: Tensor) -> Tensor:
        """Compute the left factors of queries [B, C] in float32."""
        return self.factors(query.double())[0].float()

    def nearest(self, query: Tensor, kept: int, exclude: Tensor | None) -> Nearest:
        """Find the ``kept`` nearest items of queries [B, C], except one each, ``exclude`` [B]."""
        return smallest_products(self.left(query), self.right, kept, exclude)

    def nearest_of_all(self, kept: int, chunk_size: int) -> Nearest:
        """Find the ``kept`` nearest other items of every item; compute each pair once."""
        n, device = len(self.right), self.gallery.device
        found = (
            torch.full((n, kept), torch.inf, dtype=torch.float32, device=device),
            torch.zeros(n, kept, dtype=torch.long, device=device),
        )
        # once: fresh memory is slow
        block = torch.empty(min(chunk_size, n), n, dtype=torch.float32, device=device)
        for first in range(0, n, chunk_size):
            rows = slice(first, min(first + chunk_size, n))
            scores = block[: rows.stop - first, : n - first]
            exact_matmul(self.left(self.gallery[rows]), self.right[first:].t(), out=scores)
            scores.diagonal().fill_(torch.inf)
            columns = scores[:, len(scores) :].t()
            for part, other in ((rows, scores), (slice(rows.stop, n), columns)):
                values, places = smallest(other, kept)
                before = found[0][part], found[1][part]
                found[0][part], found[1][part] = merge(before, (values, places + first), kept)
        return found

    def certain(
        self, query: Tensor, scores: Tensor, hit: Tensor, depth: Tensor, whole: bool
    ) -> Tensor:
        """Return where hits and misses among the first ``depth`` are in their exact order [B].

        That is so if neighbouring hits and misses are clearly apart, and, unless the items kept
        are the ``whole`` gallery, if the last of them lies clearly behind the last one asked for.

        Args:
            query: Embeddings ``[B, C]``.
            scores: Scores of the items kept ``[B, kept]``, nearest first.
            hit: Whether they are relevant ``[B, kept]``.
            depth: Number of items that matter ``[B]``.
            whole: Whether there are no other items.
        """
        clearly_behind = self.clearly_behind(query, scores)
        scores = scores.double()
        edge = clearly_behind.gather(1, depth[:, None] - 1)
        # NaN compares false: what could not be computed is not certain.
        apart = scores[:, 1:] > clearly_behind[:, :-1]
        apart |= (hit[:, 1:] == hit[:, :-1]) | (scores[:, :-1] > edge)
        certain = apart.all(dim=1)
        return certain if whole else certain & (scores[:, -1:] > edge).flatten()

    def clearly_behind(self, query: Tensor, scores: Tensor) -> Tensor:
        """Scores in float64 beyond which an item is farther than the one with a score [B, kept]."""
        left, _, blur = self.factors(query.double())
        error = self.rounding * torch.linalg.vector_norm(left, dim=1, keepdim=True)
        share = (1 + blur * self.most_blur).square() - 1
        scores = scores.double()
        return scores + 2 * error + share * (scores + error).abs()


def converted(points: Tensor, dtype: torch.dtype = torch.float64) -> Iterator[Tensor]:
    """Convert points, so many at a time that they are small beside a block of scores."""
    rows = max(1, fitting_scores(points.device) // (8 * max(1, points.size(1))))
    return (block.to(dtype) for block in points.split(rows))


def _factors(distance: str | Rankable, gallery: Tensor) -> Callable[[Tensor], Factors]:
    if isinstance(distance, Rankable):
        return distance.rank_factors
    if distance == "cosine":

        def cosine(points: Tensor) -> Factors:
            unit = normalize(points)
            return -unit, unit, points.new_zeros(len(points), 1)

        return cosine

    # |q-g|² is taken from the centre and at a scale around 1, which does not change its order.
    centre = central_point(gallery).double()
    radii = [
        torch.linalg.vector_norm(points - centre, dim=1).max() for points in converted(gallery)
    ]
    scale = torch.stack(radii).max().clamp(min=torch.finfo(torch.float64).tiny)

    def euclidean(points: Tensor) -> Factors:
        left, right = distance_factors((points - centre) / scale)
        return left, right, points.new_zeros(len(points), 1)

    return euclidean
