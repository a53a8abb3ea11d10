"""Recall@K, R-precision and MAP@R of a query set against a gallery."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize

from bgl._checks import check_choice, check_finite, check_index_vector, check_int, check_matrix
from bgl._neighbors import Nearest
from bgl._precision import at_least_float32, central_point, exact_matmul
from bgl._sizes import fitting_scores, score_block
from bgl.metrics.screening import SPARE, SYMMETRIC_KEPT, Rankable, Screen, converted

Distance = str | Callable[[Tensor, Tensor], Tensor]

# Items kept beyond the depth asked for, where some at the same distance may lie behind.
MANY_SPARE = 256
# Items whose scores are computed again together, for as many queries as found them.
RESCORED = 4096


@torch.no_grad()
def retrieval_metrics(
    query: Tensor,
    query_labels: Tensor,
    gallery: Tensor | None = None,
    gallery_labels: Tensor | None = None,
    k: Sequence[int] = (1, 2, 4, 8),
    distance: Distance = "cosine",
    chunk_size: int | None = None,
) -> dict[str, float]:
    r"""Compute Recall@K, R-precision and MAP@R, averaged over the queries.

    For a query with :math:`R` relevant gallery items (same label), nearest items first:

    - **recall@k** is 1 if one of the first :math:`k` items is relevant (of all items, where the
      gallery is smaller than :math:`k`);
    - **r_precision** is the share of relevant items among the first :math:`R`;
    - **map@r** is :math:`\frac{1}{R} \sum_{i \le R} P(i)\, rel(i)` with :math:`P(i)` the
      precision among the first :math:`i` (`"A Metric Learning Reality Check"
      <https://arxiv.org/abs/2003.08505>`_, Musgrave et al., ECCV 2020, section 3.2).

    Queries without any relevant item are left out of the averages and counted.

    **Ties.** Items at the same distance keep the order of the gallery: the lower index is nearer.
    Identical rows are scored once, so they tie exactly, whatever ``chunk_size`` is. The result is
    that of scores in float64, which keep every other order down to differences of some 15 digits
    below the squared spread of the gallery. Integers and codes tie as their distances do.

    **Speed.** ``"cosine"``, ``"euclidean"`` and ``HyperbolicDistance`` are ranked by inner
    products in float32 (a set against itself by half of them); where their rounding could change
    the order of a hit and a miss, what is nearest is scored again in float64 (:class:`Screen`).
    Other distances are computed in float64 throughout.

    **Memory.** Queries are ranked a block at a time, against a part of the gallery where it is
    large. Besides a float32 copy of the gallery, where a quarter of the free memory holds it,
    this takes some 0.5 GB on a CPU, and on a GPU at most half of its free memory. Embeddings
    beyond memory may be a file's that is mapped (:meth:`bgl.embedding.ShardFolder.write_npy`).

    Args:
        query: Embeddings ``[Q, C]``, of any floating-point type.
        query_labels: Any integers ``[Q]``.
        gallery: Embeddings ``[G, C]``. By default the queries are their own gallery, and each
            query leaves out itself, by index.
        gallery_labels: Any integers ``[G]``, given together with ``gallery``.
        k: The K of Recall@K.
        distance: ``"cosine"``, ``"euclidean"``, or a distance object such as
            ``bgl.hyperbolic.HyperbolicDistance`` or any of pytorch-metric-learning
            (``is_inverted`` ones are similarities): a callable from two point sets to ``[Q, G]``.
        chunk_size: Most queries ranked at a time; by default as many as fit.

    Returns:
        ``recall@k`` for each k, ``map@r``, ``r_precision`` (fractions in [0, 1]), and the counts
        ``num_queries`` (averaged over) and ``num_excluded``.

    Raises:
        ValueError: If an argument has the wrong type or shape, embeddings are not finite, a set is
            empty, ``distance`` is unknown, or no query has a relevant item.

    Example:
        >>> x = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.2, 1.0], [1.0, 1.0]])
        >>> retrieval_metrics(x, torch.tensor([0, 0, 1, 1, 2]), k=(1,))
        {'recall@1': 1.0, 'map@r': 1.0, 'r_precision': 1.0, 'num_queries': 4, 'num_excluded': 1}
    """
    ranking = Ranking(query, query_labels, gallery, gallery_labels, k, distance, chunk_size)
    return ranking.averages(ranking.measure(ranking.counted))


class Ranking:
    """The task of :func:`retrieval_metrics`, to be done for some queries at a time.

    It takes the arguments of that function.

    Attributes:
        counted: The queries that have a relevant item, those with the fewest first.
    """

    def __init__(
        self,
        query: Tensor,
        query_labels: Tensor,
        gallery: Tensor | None = None,
        gallery_labels: Tensor | None = None,
        k: Sequence[int] = (1, 2, 4, 8),
        distance: Distance = "cosine",
        chunk_size: int | None = None,
    ) -> None:
        for cutoff in k:
            check_int(cutoff, "k", minimum=1)
        if chunk_size is not None:
            check_int(chunk_size, "chunk_size", minimum=1)
        if isinstance(distance, str):
            check_choice(distance, "distance", ("cosine", "euclidean"))
        elif not callable(distance):
            raise ValueError(
                "Expected argument `distance` to be a name or a callable from two point sets to "
                f"[Q, G], but got {distance!r}"
            )
        _check_set(query, query_labels, "query")
        own_gallery = gallery is None
        if gallery is None or gallery_labels is None:
            if gallery is not None or gallery_labels is not None:
                raise ValueError(
                    "Expected arguments `gallery` and `gallery_labels` together, or none"
                )
            gallery, gallery_labels = query, query_labels
        else:
            _check_set(gallery, gallery_labels, "gallery")
            if gallery.size(1) != query.size(1):
                raise ValueError(
                    f"Expected argument `gallery` to have as many columns as `query` "
                    f"({query.size(1)}), but got {gallery.size(1)}"
                )

        device = query.device
        labels = torch.cat([query_labels.to(device).long(), gallery_labels.to(device).long()])
        classes, ids = labels.unique(return_inverse=True)
        query_ids, gallery_ids = ids.split([len(query), len(gallery)])
        relevant = gallery_ids.bincount(minlength=len(classes))[query_ids] - int(own_gallery)
        counted = relevant.nonzero().flatten()
        if len(counted) == 0:
            raise ValueError(
                "Expected argument `query_labels` to share a label with another item of the "
                f"gallery, but none of the {len(query)} queries has a relevant item"
            )
        # Each block is ranked as deep as its largest class: keep large classes to their own blocks.
        self.counted = counted[relevant[counted].argsort(stable=True)]
        self._query, self._query_ids, self._relevant = query, query_ids, relevant
        self._gallery, self._gallery_ids = gallery.to(device), gallery_ids
        self._own_gallery, self._available = own_gallery, len(gallery) - int(own_gallery)
        self._k, self._deepest = k, max(k, default=0)
        self._distance, self._chunk_size = distance, chunk_size

    @torch.no_grad()
    def measure(self, queries: Tensor) -> Tensor:
        """Measure some of the queries, in the order of :attr:`counted`.

        Returns:
            recall@k for each k, map@r and r_precision of each, ``[len(queries), len(k) + 2]``.
        """
        device, dtype = queries.device, _rank_dtype(queries.device)
        results = torch.zeros(len(queries), len(self._k) + 2, dtype=dtype, device=device)
        doubtful = torch.arange(len(queries), device=device)
        screen = _screen(self._distance, self._gallery)
        if screen is not None:
            # most queries have a hit early, and need not be ranked down to the largest k
            for depth in sorted({min(SYMMETRIC_KEPT - SPARE, self._deepest), self._deepest}):
                sure = self._screened(screen, queries, doubtful, depth, SPARE, results)
                doubtful = doubtful[~sure]
            # behind the others may be many at the same distance
            sure = self._screened(screen, queries, doubtful, self._deepest, MANY_SPARE, results)
            doubtful = doubtful[~sure]
        if len(doubtful) == 0:
            return results
        score = _scorer(self._distance, self._gallery)
        height = max(1, fitting_scores(device) // (4 * len(self._gallery)))
        for places, depth in self._blocks(queries, doubtful, height, self._deepest):
            rows = queries[places]
            exact = score(self._query[rows].to(dtype))
            if self._own_gallery:
                exact.scatter_(1, rows[:, None], torch.inf)
            results[places] = self._per_query(rows, _nearest(exact, depth))
        return results

    def averages(self, results: Tensor) -> dict[str, float]:
        """Average the results of all the queries :attr:`counted`, in this order."""
        names = [f"recall@{cutoff}" for cutoff in self._k] + ["map@r", "r_precision"]
        means = results.T.contiguous().mean(dim=1).tolist()
        return {
            **dict(zip(names, means, strict=True)),
            "num_queries": len(results),
            "num_excluded": len(self._query) - len(results),
        }

    def _blocks(
        self, queries: Tensor, places: Tensor, height: int, depth: int
    ) -> list[tuple[Tensor, int]]:
        """Divide some places in ``queries`` into blocks, each with ``depth`` or its largest R."""
        if len(places) == 0:
            return []
        parts = places.split(min(height, self._chunk_size or height))
        relevant = self._relevant[queries[torch.stack([part[-1] for part in parts])]].tolist()
        depths = (min(max(depth, most), self._available) for most in relevant)
        return list(zip(parts, depths, strict=True))

    def _screened(
        self,
        screen: Screen,
        queries: Tensor,
        places: Tensor,
        depth: int,
        spare: int,
        results: Tensor,
    ) -> Tensor:
        """Fill in the results of a ranking in float32; return where they are sure to be exact.

        Where its rounding could change the order of what was found, that is scored in float64.
        """
        n, device = len(self._gallery), queries.device
        height, width = score_block(device, len(places), n)
        blocks = self._blocks(queries, places, height, depth)
        found: Nearest | None = None
        most_kept = min(max((depth for _, depth in blocks), default=0) + spare, self._available)
        halves = self._own_gallery and 2 * len(places) > n and width == n
        halves = halves and isinstance(screen.right, Tensor) and device.type == "cpu"
        if halves and most_kept <= SYMMETRIC_KEPT:
            found = screen.nearest_of_all(most_kept, min(height, self._chunk_size or height))
        deepest, parts = min(self._deepest, self._available), []
        for part, depth in blocks:
            rows = queries[part]
            if found is None:
                kept = min(depth + spare, self._available)
                exclude = rows if self._own_gallery else None
                scores, nearest = screen.nearest(self._query[rows], kept, exclude)
            else:
                scores, nearest = found[0][rows], found[1][rows]
            whole = nearest.size(1) == self._available
            hit, needed = self._hits(rows, nearest), self._needed(rows, nearest, depth)
            sure = screen.certain(self._query[rows], scores, hit, needed.clamp(max=depth), whole)
            unsure = (~sure).nonzero().flatten()
            step = max(1, RESCORED // nearest.size(1))
            for some in unsure.split(step) if len(unsure) > 0 else ():
                again = rows[some]
                order = self._exact_order(again, nearest[some])
                nearest[some] = nearest[some].gather(1, order)
                needed[some] = self._needed(again, nearest[some], depth)
                behind = screen.clearly_behind(self._query[again], scores[some]).gather(1, order)
                last = needed[some, None].clamp(max=depth) - 1
                edge = behind.cummax(dim=1).values.gather(1, last)
                sure[some] = (scores[some, -1:] > edge).flatten() | whole
            # without any hit the largest k must have been reached
            parts.append(sure & ((needed <= depth) | (depth >= deepest)))
            results[part] = self._per_query(rows, nearest[:, :depth])
        return torch.cat([places.new_empty(0, dtype=torch.bool), *parts])

    def _needed(self, rows: Tensor, nearest: Tensor, depth: int) -> Tensor:
        """How many of what is nearest matter: up to the first hit, and the ranks up to R."""
        misses = (self._hits(rows, nearest[:, :depth]).cumsum(dim=1) == 0).sum(dim=1)
        return torch.maximum(misses + 1, self._relevant[rows])

    def _exact_order(self, rows: Tensor, found: Tensor) -> Tensor:
        """The order in float64 of the items that were found for some queries [B, kept]."""
        items, places = found.unique(return_inverse=True)  # in the order of the gallery
        score = _scorer(self._distance, self._gallery[items])
        scores = score(self._query[rows].to(_rank_dtype(rows.device))).gather(1, places)
        by_place = places.argsort(dim=1)
        return by_place.gather(1, scores.gather(1, by_place).argsort(dim=1, stable=True))

    def _hits(self, rows: Tensor, nearest: Tensor) -> Tensor:
        return self._gallery_ids[nearest] == self._query_ids[rows, None]

    def _per_query(self, rows: Tensor, nearest: Tensor) -> Tensor:
        """Compute recall@k..., map@r, r_precision ``[B, len(k) + 2]`` from what is nearest."""
        hit, relevant = self._hits(rows, nearest), self._relevant[rows]
        rank = torch.arange(1, hit.size(1) + 1, device=hit.device)
        counts = hit.cumsum(dim=1)
        dtype = _rank_dtype(hit.device)
        within = hit & (rank <= relevant[:, None])
        average_precision = (counts.to(dtype) / rank).mul_(within).sum(dim=1) / relevant
        return torch.stack(
            [
                *(hit[:, :cutoff].any(dim=1).to(dtype) for cutoff in self._k),
                average_precision,
                within.sum(dim=1).to(dtype) / relevant,
            ],
            dim=1,
        )


def _check_set(x: Tensor, labels: Tensor, name: str) -> None:
    check_matrix(x, name)
    check_index_vector(labels, len(x), f"{name}_labels")
    if len(x) == 0:
        raise ValueError(f"Expected argument `{name}` to have at least one row, but got none")
    check_finite(x, name)


def _rank_dtype(device: torch.device) -> torch.dtype:
    # Apple's GPUs have no float64.
    return torch.float32 if device.type == "mps" else torch.float64


def _screen(distance: Distance, gallery: Tensor) -> Screen | None:
    """Make the fast way, where it exists."""
    if gallery.device.type != "mps" and isinstance(distance, (str, Rankable)):
        return Screen(distance, gallery)
    return None


def _scorer(distance: Distance, gallery: Tensor) -> Callable[[Tensor], Tensor]:
    """Make a function from queries ``[B, C]`` to scores ``[B, G]``, smaller for nearer items.

    A matrix product may round equal columns differently. So equal gallery rows are scored once.
    """
    # unique() has no kernel for half precision on every device.
    distinct, copy_of = at_least_float32(gallery).unique(dim=0, return_inverse=True)
    if len(distinct) == len(gallery):
        return _score_against(distance, gallery)
    score = _score_against(distance, distinct)
    return lambda query: score(query)[:, copy_of]


def _score_against(distance: Distance, gallery: Tensor) -> Callable[[Tensor], Tensor]:
    """Make the function without regard to equal rows, from a part of the gallery at a time."""
    score = _score_of_part(distance, gallery)
    dtype = _rank_dtype(gallery.device)
    return lambda query: torch.cat(
        [score(query, part) for part in converted(gallery, dtype)], dim=1
    )


def _score_of_part(distance: Distance, gallery: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    if isinstance(distance, Rankable):
        return distance.rank_key
    if distance == "cosine":
        return lambda query, part: exact_matmul(-normalize(query), normalize(part).T)
    if not isinstance(distance, str):
        sign = -1 if getattr(distance, "is_inverted", False) else 1
        return lambda query, part: sign * distance(query, part)
    centre = central_point(gallery).to(_rank_dtype(gallery.device))

    def euclidean(query: Tensor, part: Tensor) -> Tensor:
        # |q-g|² without |q|², which is the same for the whole row.
        part = part - centre
        return part.square().sum(dim=1) - 2 * exact_matmul(query - centre, part.T)

    return euclidean


def _nearest(scores: Tensor, depth: int) -> Tensor:
    """Columns of the ``depth`` smallest scores of each row, equal ones by column: ``[B, depth]``.

    ``topk`` is fast but leaves the order of equal scores open, including which of them it takes
    at the end. Only the rows where that shows are sorted in full.
    """
    if depth == scores.size(1):
        return scores.argsort(dim=1, stable=True)
    values, nearest = scores.topk(depth + 1, dim=1, largest=False)
    tied = (values[:, 1:] == values[:, :-1]).any(dim=1).nonzero().flatten()
    nearest = nearest[:, :depth]
    if len(tied) > 0:
        nearest[tied] = scores[tied].argsort(dim=1, stable=True)[:, :depth]
    return nearest
