"""Refining embeddings without labels: the learned graph over a gallery's nearest neighbours."""

from __future__ import annotations

from collections.abc import Callable
from typing import overload

import torch
import torch.nn.functional as F
from torch import Tensor

from bgl._checks import check_finite, check_int, check_matrix, check_real
from bgl._neighbors import Index, check_index, exact_search, to_numpy, without_self
from bgl._precision import at_least_float32
from bgl._sizes import fitting_scores
from bgl.layers.adaptive_graph import AdaptiveGraph
from bgl.layers.pairs import Neighbors
from bgl.readout import LinearReadout

__all__ = ["RefinedGallery", "gallery_readout", "refine"]


@overload
def refine(
    gallery: Tensor,
    queries: None = ...,
    *,
    k: int = ...,
    epsilon: float = ...,
    lam: float = ...,
    num_iterations: int = ...,
    shrinkage: float | None = ...,
    candidates: int | None = ...,
    index: Index | None = ...,
) -> Tensor: ...


@overload
def refine(
    gallery: Tensor,
    queries: Tensor,
    *,
    k: int = ...,
    epsilon: float = ...,
    lam: float = ...,
    num_iterations: int = ...,
    shrinkage: float | None = ...,
    candidates: int | None = ...,
    index: Index | None = ...,
) -> tuple[Tensor, Tensor]: ...


@torch.no_grad()
def refine(
    gallery: Tensor,
    queries: Tensor | None = None,
    *,
    k: int = 7,
    epsilon: float = 0.5,
    lam: float = 0.3,
    num_iterations: int = 3,
    shrinkage: float | None = 0.1,
    candidates: int | None = None,
    index: Index | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    r"""Refine embeddings without labels, through the graph of their nearest neighbours.

    The closed form of :class:`~bgl.layers.AdaptiveGraph` (``formulation="paper"``, :math:`\beta
    = 0`) needs no labels. Over a gallery it re-weights the nearest neighbours of every item, and
    what it finds serves twice: to learn a metric, and to mix each item with its neighbours. The
    results are compared by cosine, like the embeddings they came from. To keep a refined gallery
    for later queries and items, use :class:`RefinedGallery`, which has the formulas.

    Results with refined embeddings are *transductive*: an item's depends on the rest of the
    gallery. Report them apart from those of single images.

    Args:
        gallery: Embeddings, compared by cosine.
        queries: Further embeddings, refined against the gallery alone: the result for one does
            not depend on the others, nor does that of the gallery.
        k, epsilon, lam, num_iterations, shrinkage, candidates, index:
            see :class:`RefinedGallery`.

    Shapes:
        - ``gallery`` [N, C]; ``queries`` [Q, C] or None
        - output [N, C] at unit length; with ``queries`` also theirs, [Q, C]

    Raises:
        ValueError: See :class:`RefinedGallery`.

    Example:
        >>> x = torch.randn(100, 16)
        >>> refine(x, k=5).shape
        torch.Size([100, 16])
        >>> gallery, queries = refine(x, queries=torch.randn(3, 16), k=5)
        >>> queries.shape
        torch.Size([3, 16])
    """
    refined = RefinedGallery(gallery, k, epsilon, lam, num_iterations, shrinkage, candidates, index)
    if queries is None:
        return refined.embeddings
    return refined.embeddings, refined.refine(queries)


class RefinedGallery:
    r"""A gallery refined without labels, kept for queries and further items.

    *Neighbours.* The ``candidates`` nearest items of each by cosine are found once, by an exact
    search in blocks of rows or by an ``index``; all graphs choose among them.

    *Metric.* Directions in which neighbours differ are shrunk, as relevant component analysis
    does with pairs known to be alike, here with the learned graph in their place. With
    :math:`T` the covariance of the embeddings :math:`x_i` of unit length, :math:`\mu` their mean,
    and :math:`A` = AdaptiveGraph(:math:`Z`),

    .. math::
        z_i = \frac{T_s^{-1/2} (x_i - \mu)}{\|\cdot\|}, \qquad
        W = \frac 1N \sum_{ij} a_{ij} (z_i - z_j)(z_i - z_j)^\top, \qquad
        h_i = \frac{W_s^{-1/2}\, T_s^{-1/2} (x_i - \mu)}{\|\cdot\|},

    where :math:`M_s = M + \rho\, (\operatorname{tr} M^2 / \operatorname{tr} M)\, I`. It is
    one linear map, ``metric``; :func:`gallery_readout` learns the same as a readout of an encoder.

    *Features.* Graph and features are refined in turn as in :class:`~bgl.layers.DyBGR`,

    .. math::
        F^0 = H, \qquad A^t = \text{AdaptiveGraph}(H;\ F^{t-1}), \qquad
        F^t = \epsilon A^t H + (1 - \epsilon) H \qquad (t = 1 \dots T).

    Memory grows with N·C and N·``candidates``, never with N².

    Source: Wang et al., *Learning Dynamic Batch-Graph Representation for Deep Representation
    Learning*, IJCV 2024 (graph and features); Bar-Hillel et al., *Learning a Mahalanobis Metric
    from Equivalence Constraints*, JMLR 2005 (metric from pairs).

    Args:
        gallery: Embeddings; copied, and compared by cosine.
        k: Number of neighbours; about the size of a class is good.
        epsilon: Share ε of the neighbours in the mix, in [0, 1]. Larger values raise precision
            among the first ranks and lower the recall of far ones.
        lam: Weight λ of the similarity of refined features.
        num_iterations: T, ≥ 0.
        shrinkage: ρ in [1e-6, 1e6], larger for a metric closer to the cosine; None leaves it as
            it is.
        candidates: Neighbours to choose from, more than ``k``; default ``4 * k``, at most N − 1.
        index: A faiss index that holds the gallery's rows at unit length, for an approximate
            search (or any object with its ``search`` and ``add``).

    Shapes:
        - ``gallery`` [N, C]
        - ``embeddings`` [N, C] refined, at unit length, at least float32
        - ``metric``: the map of embeddings of unit length, or None

    Raises:
        ValueError: If an argument has the wrong type, shape or range, embeddings are not finite
            or zero, ``k`` ≥ N, or the index holds something else.

    Example:
        >>> gallery = RefinedGallery(torch.randn(100, 16), k=5)
        >>> gallery.refine(torch.randn(3, 16)).shape
        torch.Size([3, 16])
        >>> gallery.add(torch.randn(2, 16))
        >>> gallery.embeddings.shape
        torch.Size([102, 16])
    """

    embeddings: Tensor
    metric: LinearReadout | None

    @torch.no_grad()
    def __init__(
        self,
        gallery: Tensor,
        k: int = 7,
        epsilon: float = 0.5,
        lam: float = 0.3,
        num_iterations: int = 3,
        shrinkage: float | None = 0.1,
        candidates: int | None = None,
        index: Index | None = None,
    ) -> None:
        self.epsilon = check_real(epsilon, "epsilon", 0.0, 1.0)
        self.num_iterations = check_int(num_iterations, "num_iterations", 0)
        self.learner = AdaptiveGraph(k, lam, beta=0.0, formulation="paper")
        if shrinkage is not None:
            check_real(shrinkage, "shrinkage", 1e-6, 1e6)
        self._x = directions(gallery, "gallery")
        n = len(self._x)
        _check_neighbors(k, n)
        self.candidates = (
            4 * k if candidates is None else check_int(candidates, "candidates", k + 1)
        )
        self.index = index
        if index is not None:
            check_index(index, self._x)

        # [N, M] candidates of each item, as 32-bit numbers: half the memory
        self._near = without_self(self._search(self._x, min(self.candidates, n - 1) + 1)).int()
        self.metric = None
        if shrinkage is not None:
            self.metric = _learn_metric(self._x, self._near, self.learner, shrinkage)
        self._h = self._map(self._x)  # in the learned metric
        self.embeddings = self._h
        self.embeddings = self._mix(torch.arange(n, device=self._x.device))

    @torch.no_grad()
    def refine(self, queries: Tensor) -> Tensor:
        """Refine queries against the gallery, each by itself; the gallery stays as it is.

        A query chooses among its nearest gallery items, whose refined features are its context.

        Args:
            queries: Embeddings [Q, C] of the same kind as the gallery's.

        Returns:
            [Q, C] at unit length.

        Raises:
            ValueError: If they are no such embeddings, not finite or zero.
        """
        x = self._directions(queries, "queries")
        if len(x) == 0:
            return x
        near = self._search(x, self._near.size(1))
        return self._mix(len(self._h) + torch.arange(len(x), device=x.device), near, self._map(x))

    @torch.no_grad()
    def add(self, items: Tensor) -> None:
        """Add items, and refine again those that find one of them among their candidates.

        The metric stays, and so do all other items, bit for bit: what separates the result from
        that of a gallery refined as a whole. Neighbours are searched exactly; an ``index`` is
        given the new rows.

        Args:
            items: Embeddings [A, C] of the same kind as the gallery's.

        Raises:
            ValueError: If they are no such embeddings, not finite or zero.
        """
        items = self._directions(items, "items")
        n, added = len(self._x), len(items)
        if added == 0:
            return
        device = self._x.device
        new = torch.arange(n, n + added, device=device)
        near, changed = self._insert(items, new)
        self._x = torch.cat([self._x, items])
        self._h = torch.cat([self._h, self._map(items)]) if self.metric is not None else self._x
        own = without_self(exact_search(items, self._x, near.size(1) + 1), n)
        self._near = torch.cat([near, own.int()])
        rows = torch.cat([changed, new])
        # a copy, so that references to the old embeddings stay valid
        self.embeddings = torch.cat([self.embeddings, self._h[n:]])
        self.embeddings[rows] = self._mix(rows)
        if self.index is not None:
            self.index.add(to_numpy(items))

    def _directions(self, x: Tensor, name: str) -> Tensor:
        x = directions(x, name).to(self._x)
        if x.size(1) != self._x.size(1):
            raise ValueError(
                f"Expected argument `{name}` to have as many columns as the gallery "
                f"({self._x.size(1)}), but got {x.size(1)}"
            )
        return x

    def _search(self, x: Tensor, count: int) -> Tensor:
        """The nearest gallery items [R, count] of unit rows, −1 for none."""
        if self.index is None:
            return exact_search(x, self._x, count)
        return torch.from_numpy(self.index.search(to_numpy(x), count)[1]).to(x.device).long()

    def _insert(self, items: Tensor, new: Tensor) -> tuple[Tensor, Tensor]:
        """The candidates with new items among them, and the rows where that changed them."""
        x, near = self._x, self._near
        result, changed = near.clone(), []

        def similarity(rows: Tensor, nodes: Tensor) -> Tensor:
            dots = torch.einsum("rc,rpc->rp", x[rows], x[nodes.clamp(min=0).long()])
            return dots.masked_fill(nodes < 0, -torch.inf)

        step = max(1, fitting_scores(x.device) // max(items.shape))
        for rows in torch.arange(len(x), device=x.device).split(step):
            best = (x[rows] @ items.t()).amax(1)
            rows = rows[best > similarity(rows, near[rows, -1:])[:, 0]]  # the last is the farthest
            changed.append(rows)
            for part in rows.split(max(1, step // near.size(1))):
                score = torch.cat([similarity(part, near[part]), x[part] @ items.t()], dim=1)
                nodes = torch.cat([near[part], new.expand(len(part), -1)], dim=1)
                result[part] = nodes.gather(1, score.topk(near.size(1), dim=1).indices).int()
        return result, torch.cat(changed)

    def _map(self, x: Tensor) -> Tensor:
        metric = self.metric
        return x if metric is None else _by_rows(lambda part: F.normalize(metric(part)), x)

    def _mix(
        self, rows: Tensor, near: Tensor | None = None, queries: Tensor | None = None
    ) -> Tensor:
        """Refine some rows; the others that they look at keep their refined features.

        ``rows`` are the gallery's, or lie behind it where they are those of ``queries``, which
        choose among the gallery items ``near``.
        """
        if queries is None and len(rows) == len(self._h):  # all, in their order
            h, local, others = self._h, self._near, rows[:0]
        else:
            near = self._near[rows].long() if near is None else near
            nodes, local = _neighborhood(rows, near, len(self._h))
            others = nodes[len(rows) :]
            h = torch.cat([self._h[rows] if queries is None else queries, self._h[others]])
        own, known = h[: len(rows)], self.embeddings[others]
        problem = self.learner.prepare(h, candidates=local)
        refined = own
        for step in range(self.num_iterations):
            # at first `h` itself, where it is the context: its products are known
            context = refined if step > 0 else h
            if len(others) > 0:
                context = torch.cat([refined, known])
            graph = problem.solve(context)
            # an item without any neighbour stays as it is
            share = self.epsilon * graph.weight.sum(1, keepdim=True)
            refined = graph.sums(h).mul_(self.epsilon).addcmul_(1 - share, own)
        del problem  # the result takes the memory of its pairs
        return F.normalize(refined)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({list(self.embeddings.shape)}, {self.learner})"


@torch.no_grad()
def gallery_readout(x: Tensor, *, k: int = 7, shrinkage: float = 1.0) -> LinearReadout:
    r"""Learn the metric of a gallery as a linear readout, for images of any other kind as well.

    The metric of :class:`RefinedGallery`, :math:`W_s^{-1/2}\, T_s^{-1/2} (x - \mu)`, of embeddings
    as an encoder gives them, of any length. It needs no labels, and is applied to each image by
    itself: ``encoder.with_readout(gallery_readout(encoder.embed(images, output="backbone")))``.

    Args:
        x: Embeddings of a gallery.
        k: Number of neighbours; about the size of a class is good.
        shrinkage: ρ in [1e-6, 1e6], larger for a metric closer to the cosine. New images want a
            larger one than those of the gallery itself, to which :class:`RefinedGallery` fits.

    Shapes:
        - ``x`` [N, C]

    Raises:
        ValueError: As :class:`RefinedGallery`.

    Example:
        >>> readout = gallery_readout(torch.randn(100, 16), k=5)
        >>> readout(torch.randn(3, 16)).shape
        torch.Size([3, 16])
    """
    rows = directions(x, "x")
    learner = AdaptiveGraph(k, beta=0.0, formulation="paper")
    check_real(shrinkage, "shrinkage", 1e-6, 1e6)
    _check_neighbors(k, len(x))
    near = without_self(exact_search(rows, rows, min(4 * k, len(x) - 1) + 1))
    x = at_least_float32(x)
    largest = x.abs().amax()  # squares of very large or small entries leave the range
    metric = _learn_metric(x / largest, near, learner, shrinkage)
    return LinearReadout(metric.mean * largest, metric.weight / largest)


def _check_neighbors(k: int, n: int) -> None:
    if k >= n:
        raise ValueError(
            f"Expected argument `k` to be smaller than the gallery, which has {n} rows, got {k}"
        )


def _learn_metric(
    x: Tensor, near: Tensor, learner: AdaptiveGraph, shrinkage: float
) -> LinearReadout:
    """The map W_s^(−1/2) T_s^(−1/2) (x − μ); each row chooses its neighbours among ``near``."""
    mean = x.mean(0)
    scatter = x.new_zeros(x.size(1), x.size(1))
    for part in x.split(_block_rows(x)):
        scatter.addmm_((part - mean).t(), part - mean)
    root = _inverse_root(scatter / len(x), shrinkage)
    z = _by_rows(lambda part: F.normalize((part - mean) @ root), x)
    graph = learner.prepare(z, candidates=near).solve(z)
    return LinearReadout(mean, _inverse_root(_scatter(z, graph), shrinkage) @ root)


def directions(x: Tensor, name: str) -> Tensor:
    """The checked rows at unit length."""
    check_matrix(x, name)
    check_finite(x, name)
    if len(x) > 0:
        zero = torch.cat([(part == 0).all(1) for part in x.split(_block_rows(x))])
        if bool(zero.any()):
            rows = zero.nonzero().flatten().tolist()
            raise ValueError(
                f"Expected argument `{name}` to have a direction in every row, but got "
                f"{len(rows)} row(s) of zeros, the first at index {rows[0]}"
            )
    # by the largest entry first: squares of very large or small entries leave the range
    return _by_rows(lambda part: F.normalize(part / part.abs().amax(1, keepdim=True)), x)


def _by_rows(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Apply a function to blocks of rows, in at least float32: without copies of a gallery."""
    result = torch.empty_like(x, dtype=torch.promote_types(x.dtype, torch.float32))
    if len(x) > 0:
        step = _block_rows(x)
        for part, place in zip(x.split(step), result.split(step), strict=True):
            place.copy_(function(at_least_float32(part)))
    return result


def _block_rows(x: Tensor) -> int:
    return max(1, fitting_scores(x.device) // max(1, 4 * x.size(1)))


def _neighborhood(rows: Tensor, near: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """The nodes to look at, ``rows`` first, and the rows' candidates by their place in it."""
    place = rows.new_full((max(n, int(rows.max()) + 1),), -1)
    place[near[near >= 0]] = 0
    place[rows] = -1
    nodes = torch.cat([rows, (place == 0).nonzero().flatten()])
    place[nodes] = torch.arange(len(nodes), device=rows.device)
    return nodes, torch.where(near >= 0, place[near.clamp(min=0)], -1)


def _scatter(z: Tensor, graph: Neighbors) -> Tensor:
    """W = (1/N) Σ a_ij (z_i − z_j)(z_i − z_j)ᵀ, through the Laplacian of the graph."""
    degree = graph.weight.sum(1)
    degree = degree.index_add(0, graph.source.flatten(), graph.weight.flatten())
    cross = z.t() @ graph.sums(z)
    return (z.t() @ (z * degree[:, None]) - cross - cross.t()) / len(z)


def _inverse_root(w: Tensor, shrinkage: float) -> Tensor:
    """(W + sI)^(−1/2), s = ρ tr(W²) / tr(W); the identity where W vanishes."""
    values, vectors = torch.linalg.eigh(w)
    values = values.clamp(min=0)
    total = values.sum()
    if total <= len(values) * torch.finfo(values.dtype).eps:  # rows are alike
        return torch.eye(len(w), dtype=w.dtype, device=w.device)
    root = (values + shrinkage * values.square().sum() / total).rsqrt()
    return (vectors * root) @ vectors.t()
