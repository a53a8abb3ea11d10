"""Recall@K, R-precision and MAP@R of a query set against a gallery."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize

from bgl._checks import check_choice, check_finite, check_index_vector, check_int, check_matrix
from bgl._precision import at_least_float32, central_point, exact_matmul
from bgl.metrics.screening import SPARE, SYMMETRIC_KEPT, Nearest, Rankable, Screen

Distance = str | Callable[[Tensor, Tensor], Tensor]


@torch.no_grad()
def retrieval_metrics(
    query: Tensor,
    query_labels: Tensor,
    gallery: Tensor | None = None,
    gallery_labels: Tensor | None = None,
    k: Sequence[int] = (1, 2, 4, 8),
    distance: Distance = "cosine",
    chunk_size: int = 2048,
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
    products in float32 (a set against itself by half of them); only queries where their rounding
    could change the order of a hit and a miss are ranked in float64 (:class:`Screen`). Other
    distances are computed in float64 throughout.

    **Memory.** One block of queries against the gallery at a time: about
    ``8 * chunk_size * len(gallery)`` bytes, besides a few float64 copies of the embeddings.

    Args:
        query: Embeddings ``[Q, C]``.
        query_labels: Any integers ``[Q]``.
        gallery: Embeddings ``[G, C]``. By default the queries are their own gallery, and each
            query leaves out itself, by index.
        gallery_labels: Any integers ``[G]``, given together with ``gallery``.
        k: The K of Recall@K.
        distance: ``"cosine"``, ``"euclidean"``, or a distance object such as
            ``bgl.hyperbolic.HyperbolicDistance`` or any of pytorch-metric-learning
            (``is_inverted`` ones are similarities): a callable from two point sets to ``[Q, G]``.
        chunk_size: Number of queries ranked at a time (an eighth of it in float64).

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
    for cutoff in k:
        check_int(cutoff, "k", minimum=1)
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
            raise ValueError("Expected arguments `gallery` and `gallery_labels` together, or none")
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
            "Expected argument `query_labels` to share a label with another item of the gallery, "
            f"but none of the {len(query)} queries has a relevant item"
        )
    # Each block is ranked as deep as its largest class: keep large classes to their own blocks.
    counted = counted[relevant[counted].argsort(stable=True)]

    gallery = gallery.to(device)
    available = len(gallery) - int(own_gallery)

    def depth_of(rows: Tensor) -> int:
        return min(max([*k, int(relevant[rows].max())]), available)

    results = torch.zeros(len(k) + 2, len(query), dtype=_rank_dtype(device), device=device)
    uncertain = counted
    screen = _screen(distance, gallery)
    if screen is not None:
        uncertain = counted[:0]
        found: Nearest | None = None
        most_kept = min(depth_of(counted) + SPARE, available)
        if own_gallery and most_kept <= SYMMETRIC_KEPT:
            found = screen.nearest_of_all(most_kept, chunk_size)
        for rows in counted.split(chunk_size):
            depth = depth_of(rows)
            if found is None:
                kept = min(depth + SPARE, available)
                scores, nearest = screen.nearest(query[rows], kept, rows if own_gallery else None)
            else:
                scores, nearest = found[0][rows], found[1][rows]
            hit = gallery_ids[nearest] == query_ids[rows, None]
            sure = screen.certain(query[rows], scores, hit, depth, nearest.size(1) == available)
            results[:, rows] = _per_query(hit[:, :depth], relevant[rows], k)
            uncertain = torch.cat([uncertain, rows[~sure]])

    if len(uncertain) > 0:
        score = _scorer(distance, gallery)
        for rows in uncertain.split(max(1, chunk_size // 8)):
            exact = score(query[rows].to(_rank_dtype(device)))
            if own_gallery:
                exact[torch.arange(len(rows), device=device), rows] = torch.inf
            hit = gallery_ids[_nearest(exact, depth_of(rows))] == query_ids[rows, None]
            results[:, rows] = _per_query(hit, relevant[rows], k)

    means = results[:, counted].mean(dim=1).tolist()
    names = [f"recall@{cutoff}" for cutoff in k] + ["map@r", "r_precision"]
    return {
        **dict(zip(names, means, strict=True)),
        "num_queries": len(counted),
        "num_excluded": len(query) - len(counted),
    }


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
    wide = at_least_float32(gallery)
    distinct, copy_of = wide.unique(dim=0, return_inverse=True)
    if len(distinct) == len(gallery):
        return _score_against(distance, gallery.to(_rank_dtype(gallery.device)))
    score = _score_against(distance, distinct.to(_rank_dtype(gallery.device)))
    return lambda query: score(query)[:, copy_of]


def _score_against(distance: Distance, gallery: Tensor) -> Callable[[Tensor], Tensor]:
    if isinstance(distance, str):
        if distance == "cosine":
            unit = normalize(gallery)
            return lambda query: exact_matmul(-normalize(query), unit.T)
        centre = central_point(gallery)
        gallery = gallery - centre
        squares = gallery.square().sum(dim=1)
        # |q-g|² without |q|², which is the same for the whole row.
        return lambda query: squares - 2 * exact_matmul(query - centre, gallery.T)
    if isinstance(distance, Rankable):
        rank_key = distance.rank_key
        return lambda query: rank_key(query, gallery)
    measure: Callable[[Tensor, Tensor], Tensor] = distance
    sign = -1 if getattr(distance, "is_inverted", False) else 1
    return lambda query: sign * measure(query, gallery)


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


def _per_query(hit: Tensor, relevant: Tensor, k: Sequence[int]) -> Tensor:
    """Rows recall@k..., map@r, r_precision ``[len(k) + 2, B]`` from the hits in ranked order."""
    rank = torch.arange(1, hit.size(1) + 1, device=hit.device)
    counts = hit.cumsum(dim=1)
    dtype = _rank_dtype(hit.device)
    within = hit & (rank <= relevant[:, None])
    average_precision = (counts.to(dtype) / rank).mul_(within).sum(dim=1) / relevant
    return torch.stack(
        [
            *(hit[:, :cutoff].any(dim=1).to(dtype) for cutoff in k),
            average_precision,
            within.sum(dim=1).to(dtype) / relevant,
        ]
    )
