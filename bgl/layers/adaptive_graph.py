"""The DyBGR graph learner: a sparse batch graph in closed form."""

from __future__ import annotations

import warnings

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bgl._checks import (
    check_choice,
    check_index_vectors,
    check_int,
    check_matrix,
    check_real,
    check_within,
    describe,
    readable,
)
from bgl._precision import at_least_float32
from bgl.layers.pairs import Block, Graph, Neighbors, Pairs, at

# Smallest denominators: they bound the gradients (see `AdaptiveGraph`) and lie far below the
# values of any batch that is not degenerate.
RANGE_FLOOR = 1e-6  # of a row's max - min, relative to max(1, largest entry of the two)
GAMMA_FLOOR = 1e-3  # of 2γ, released formulation
GAP_FLOOR = 1e-4  # of Σ_p (c_(k+1) - c_(p)), paper formulation
NORM_FLOOR = 1e-6  # of |h|, paper formulation
# Largest |λ| and |β|: with weights of up to 1e9 products of features stay finite in float32.
LARGEST = 1e6


class AdaptiveGraph(nn.Module):
    r"""Learn a sparse graph over the samples of a batch, in closed form and without parameters.

    The graph learner of `"Learning Dynamic Batch-Graph Representation for Deep
    Representation Learning" <https://doi.org/10.1007/s11263-024-02175-8>`_ (IJCV 2024).

    For every sample :math:`i` the edge weights :math:`a_{ij}` answer one small optimisation
    problem: prefer neighbours that are *similar*, that *agree with the labels* and that have
    similar *contextual features*, and use *few* of them,

    .. math::
        \min_{a_i} \sum_j c_{ij} a_{ij} + \gamma_i \|a_i\|^2
        \quad\text{s.t.}\quad a_{ij} \ge 0,\ \sum_j a_{ij} = 1,\ a_{ii} = 0 .

    ``formulation="paper"`` solves it exactly, with
    :math:`c_{ij} = \|\hat h_i - \hat h_j\|^2 - 2\beta S_{ij}
    - \lambda \langle \hat f_i, \hat f_j\rangle`, where :math:`\hat h, \hat f` are the rows of
    ``x`` and ``context`` at unit length and :math:`S_{ij} = 1` for equal labels, else 0.
    *Derivation:* with multipliers :math:`\eta_i` (sum) and :math:`\mu_{ij} \ge 0` (signs) the
    Karush–Kuhn–Tucker conditions are :math:`c_{ij} + 2\gamma_i a_{ij} - \eta_i - \mu_{ij} = 0`
    and :math:`\mu_{ij} a_{ij} = 0`, hence :math:`a_{ij} = (\eta_i - c_{ij})_+ / 2\gamma_i`.
    Let :math:`c_{i(1)} \le c_{i(2)} \le \dots` be the sorted costs. Exactly the :math:`k`
    cheapest are positive when :math:`\eta_i` reaches the next one,
    :math:`\eta_i = c_{i(k+1)}`; the weights then sum to 1 for
    :math:`2\gamma_i = \sum_{p \le k} (c_{i(k+1)} - c_{i(p)})`, which gives

    .. math::
        a_{ij} = \frac{(c_{i(k+1)} - c_{ij})_+}{\sum_{p \le k} (c_{i(k+1)} - c_{i(p)})}
               = \frac 1k + \frac{\bar c_i - c_{ij}}{2\gamma_i}
        \quad (j \text{ among the } k \text{ cheapest},\ \bar c_i \text{ their mean}).

    The second form is computed, with :math:`2\gamma_i` never below ``GAP_FLOOR`` = 1e-4: the
    weights still sum to 1 and stay :math:`\ge 0`, ties give :math:`1/k`, and
    :math:`|\partial a_{ij} / \partial c_{ip}| \le (k + 1) / 2\gamma_i \le (k + 1) \cdot 10^4`.

    ``formulation="released"`` is what the authors' code computes. With
    :math:`N(\cdot)` = row-wise (value − min) / (max − min), distances
    :math:`d_{ij} = \|h_i - h_j\|` and label correlation
    :math:`L_{ij} = S_{ij} (1 + \delta_{ij}) / (n_i + 1)` (:math:`n_i` samples of i's
    class in its graph, or among i and its candidates),

    .. math::
        D &= N\big(d - 2\beta L - 10^{-5} N(HH^\top)\big), \\
        \gamma &= \operatorname{mean}_i \tfrac12 \Big(k D_{i(k+1)} - \sum_{p\le k} D_{i(p)}\Big),
        \qquad
        \eta_i = \tfrac1k \Big(1 + \tfrac{1}{2\gamma} \sum_{p\le k} D_{i(p)}\Big), \\
        a_{ij} &= \Big(\eta_i - \tfrac{1}{2\gamma}
                  \big(D_{ij} - \lambda\, N(FF^\top)_{ij}\big)\Big)_+
        \quad (j \text{ among the } k \text{ smallest } D_{ij},\ j \ne i).

    The neighbours depend on ``x`` alone; the weights of a row sum to more than 1. Where the
    authors' code divides by zero, ranges of (almost) constant rows are held at
    ``RANGE_FLOOR`` = 1e-6 (relative to the largest entry, at least 1) and :math:`2\gamma` at
    ``GAMMA_FLOOR`` = 1e-3, so that :math:`a_{ij} \le 1/k + (1 + \lambda) \cdot 10^3`; both
    leave other batches unchanged.

    Self is left out by index. ``k`` is lowered to N − 2 where the batch is too small (with a
    warning unless ``batch`` is given); with one possible neighbour its weight is 1; a single
    sample has no edges. Graphs of a ``batch`` are learned apart, as if each were passed alone
    (k, and for "released" also γ, per graph). Everything runs in at least float32, under
    autocast too.

    A row of ``x`` that is not finite is nobody's neighbour while ``k`` + 1 others are, and its own
    weights are NaN (with ``batch`` or ``candidates`` it has no edges); all other edges are as
    without it. Repeated candidates count once.

    Memory grows with N·k, since large batches are looked at in blocks of rows. ``torch.compile``
    makes one graph for all N. It looks at all N² pairs at once, since a loop over blocks would be
    unrolled for one N.

    Args:
        k: Number of neighbours, ≥ 1.
        lam: Weight λ of the contextual similarity, in [0, 1e6].
        beta: Weight β of the label correlation, in [-1e6, 1e6]; negative values repel equal
            labels.
        formulation: ``"released"`` or ``"paper"``.

    Shapes:
        - ``x`` [N, C] features; ``context`` [N, C'] features of the previous iteration
          (default: ``x``); ``y`` [N] integer labels or None; ``batch`` [N] graph of each
          sample or None; ``candidates`` [N, M] nodes to choose the neighbours from (−1 marks a
          missing one), default all; with
          fewer rows than N only the first samples get neighbours
        - output: ``edge_index`` [2, E] (source j, target i) and ``edge_weight`` [E], E = N·k
          unless rows have fewer possible neighbours

    Raises:
        ValueError: If an argument has the wrong type, rank, shape or range.

    Example:
        >>> x = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.6, 0.8], [0.0, 1.0]])
        >>> edge_index, edge_weight = AdaptiveGraph(k=2, lam=0.0, formulation="paper")(x)
        >>> edge_index[:, :2]  # the two neighbours of sample 0
        tensor([[1, 2],
                [0, 0]])
        >>> edge_weight[:2]
        tensor([0.5714, 0.4286])
    """

    def __init__(
        self, k: int = 15, lam: float = 0.3, beta: float = 0.5, formulation: str = "released"
    ) -> None:
        super().__init__()
        self.k = check_int(k, "k", 1)
        self.lam = check_real(lam, "lam", 0.0, LARGEST)
        self.beta = check_real(beta, "beta", -LARGEST, LARGEST)
        self.formulation = check_choice(formulation, "formulation", ("released", "paper"))

    def forward(
        self,
        x: Tensor,
        *,
        y: Tensor | None = None,
        batch: Tensor | None = None,
        context: Tensor | None = None,
        candidates: Tensor | None = None,
    ) -> Graph:
        """Learn the graph of ``x`` for one set of contextual features."""
        problem = self.prepare(x, y=y, batch=batch, candidates=candidates)
        neighbors = problem.solve(x if context is None else context)
        del problem  # its pairs are freed before the edges are listed
        return neighbors.edges()

    def prepare(
        self,
        x: Tensor,
        *,
        y: Tensor | None = None,
        batch: Tensor | None = None,
        candidates: Tensor | None = None,
    ) -> Problem:
        """Set up what does not change while the context is refined."""
        _check(x, y, batch, candidates)
        pairs = Pairs(x.size(0), x.device, batch, candidates)
        possible = pairs.width - 1
        k = max(0, min(self.k, max(possible - 1, min(possible, 1))))
        if pairs.whole and k < self.k and not torch.compiler.is_compiling():
            warnings.warn(
                # the same words for every size, so that Python shows it once
                f"k={self.k} needs at least {self.k + 2} samples; a smaller batch has fewer "
                "neighbours",
                stacklevel=3,
            )
        kind = PaperProblem if self.formulation == "paper" else ReleasedProblem
        return kind(x, y, pairs, k, self.lam, self.beta)

    def extra_repr(self) -> str:
        return f"k={self.k}, lam={self.lam}, beta={self.beta}, formulation={self.formulation!r}"


def _check(x: Tensor, y: Tensor | None, batch: Tensor | None, candidates: Tensor | None) -> None:
    check_matrix(x)
    check_index_vectors(x.size(0), y=y, batch=batch)
    if candidates is None:
        return
    if (
        not isinstance(candidates, Tensor)
        or candidates.dim() != 2
        or candidates.size(0) > x.size(0)
        or candidates.dtype not in (torch.int64, torch.int32)
    ):
        raise ValueError(
            f"Expected argument `candidates` to be an integer tensor of shape [R, M] with at most "
            f"{x.size(0)} rows, but got {describe(candidates)}"
        )
    if readable(candidates):
        check_within(candidates, "candidates", -1, x.size(0) - 1, "nodes")


class Problem:
    """The optimisation problems of all rows, of which the context alone is still open.

    Args:
        x: Features H [N, C].
        y: Labels [N] or None.
        pairs: The pairs that may become edges.
        k: Neighbours per row; at 0 there are no edges.
        lam: Weight λ of the contextual similarity.
        beta: Weight β of the label correlation.
    """

    def __init__(
        self, x: Tensor, y: Tensor | None, pairs: Pairs, k: int, lam: float, beta: float
    ) -> None:
        self.x, self.y, self.pairs, self.k = x, y, pairs, k
        self.lam, self.beta = lam, beta
        with torch.autocast(x.device.type, enabled=False):
            self.h = self.features(x)
            self.square = self.h.square().sum(1)
            if k > 0:
                self.set_up()

    def features(self, x: Tensor) -> Tensor:
        """The features whose inner products the formulation looks at."""
        return at_least_float32(x)

    def set_up(self) -> None:
        """Compute what else depends on ``x`` alone."""

    def weigh(self, f: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Neighbours [R, k], their weights (negative ones count as 0), and how many [R, 1]."""
        raise NotImplementedError

    def solve(self, context: Tensor) -> Neighbors:
        """The graph for contextual features F [N, C']."""
        check_matrix(context, "context")
        if context.size(0) != self.x.size(0):
            raise ValueError(
                f"Expected argument `context` to have {self.x.size(0)} rows like `x`, "
                f"got {context.size(0)}"
            )
        if self.k == 0:
            empty = self.square.new_zeros(self.pairs.rows.size(0), 0)
            return Neighbors(empty.long(), empty, None)
        with torch.autocast(context.device.type, enabled=False):
            f = self.h if context is self.x else self.features(context)
            source, weight, degree = self.weigh(f)
        if self.pairs.whole:
            return Neighbors(source, weight.relu(), None)
        mask = torch.arange(self.k, device=weight.device) < degree
        return Neighbors(source, torch.where(mask, weight, 0).relu(), mask)

    def same(self, i: Tensor, j: Tensor) -> Tensor | None:
        """S_ij, whether samples i [R] and j [W] or [R, W] have equal labels."""
        return None if self.y is None else at(self.y, i)[:, None] == at(self.y, j)

    def nearest(self, cost: Tensor, block: Block) -> tuple[Tensor, Tensor]:
        """Positions of the k + 1 smallest costs [R, k + 1], and how many were found [R, 1].

        What is missing, or costs no number, is the row itself, but the last is the last found.
        """
        cost = cost.scatter(1, block.itself, torch.inf)
        smallest = cost.topk(min(self.k + 1, cost.size(1)), largest=False)
        there = smallest.values < torch.inf
        found = there.sum(1, keepdim=True)
        position = torch.where(there, smallest.indices, block.itself)
        last = position.gather(1, (found - 1).clamp(min=0))
        padding = block.itself.expand(-1, max(0, self.k - position.size(1)))
        return torch.cat([position[:, : self.k], padding, last], dim=1), found

    def gaps(self, cost: Tensor, found: Tensor) -> tuple[Tensor, Tensor]:
        """c_(k+1) − c_(p) [R, k], 0 where padded, and how many neighbours there are [R, 1].

        Differences come first since the costs of almost equal rows cancel exactly. A single
        neighbour has no other to be compared with.
        """
        degree = torch.minimum((found - 1).clamp(min=1), found)
        near, last = cost.split([self.k, 1], dim=1)
        return (last - near) * (torch.arange(self.k, device=cost.device) < degree), degree


class PaperProblem(Problem):
    """c_ij = |ĥ_i − ĥ_j|² − 2βS_ij − λ⟨f̂_i, f̂_j⟩, solved exactly for each context."""

    def features(self, x: Tensor) -> Tensor:
        x = at_least_float32(x)
        norm = torch.linalg.vector_norm(x, dim=1, keepdim=True)
        return x / F.threshold(norm, NORM_FLOOR, NORM_FLOOR)

    def set_up(self) -> None:
        self.products = self.pairs.products(self.h)

    def weigh(self, f: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        def choose(block: Block, dots: Tensor, context_dots: Tensor) -> tuple[Tensor, Tensor]:
            return self.nearest(self.cost(block.rows, block.columns, dots, context_dots), block)

        pairs = self.pairs
        nodes, dots, context_dots, found = pairs.select(choose, self.h, f, products=self.products)
        gap, degree = self.gaps(self.cost(pairs.rows, nodes, dots, context_dots), found)
        total, share = gap.sum(1, keepdim=True), degree.clamp(min=1).to(gap.dtype).reciprocal()
        weight = share + (gap - total * share) / F.threshold(total, GAP_FLOOR, GAP_FLOOR)
        return nodes[:, : self.k], weight, degree

    def cost(self, i: Tensor, j: Tensor, dots: Tensor, context_dots: Tensor) -> Tensor:
        """c_ij − |ĥ_i|² from ⟨ĥ_i, ĥ_j⟩ and ⟨f̂_i, f̂_j⟩; what is equal in a row does not matter."""
        cost = torch.add(at(self.square, j), dots, alpha=-2)
        cost = torch.add(cost, context_dots, alpha=-self.lam)
        same = self.same(i, j)
        return cost if same is None else torch.add(cost, same, alpha=-2 * self.beta)


class ReleasedProblem(Problem):
    """Neighbours and D_ij from x alone; the context moves their weights."""

    def set_up(self) -> None:
        k, pairs = self.k, self.pairs

        def choose(block: Block, dots: Tensor) -> tuple[Tensor, ...]:
            """Where ⟨h_i, h_j⟩ is smallest and largest, the k + 1 smallest D, D's own extremes."""
            itself = block.itself
            dots.scatter_(1, itself, at(self.square, block.rows)[:, None])  # so that d_ii is 0
            low, high, label = _lowest(dots), _highest(dots), self.label(block)
            span = _range(low.values, high.values)
            cost = self.cost(block.rows, block.columns, dots, span, label)
            nearest, found = self.nearest(cost, block)
            first = nearest[:, :1]  # the smallest is one of the two
            least = torch.where(cost.gather(1, itself) < cost.gather(1, first), itself, first)
            places = [low.indices, high.indices, nearest, least, _highest(cost).indices]
            position = torch.cat(places, dim=1)
            chosen = position[:, 2:]
            return position, chosen[:, :k], label.expand_as(cost).gather(1, chosen), found

        nodes, dots, self.position, label, found = pairs.select(choose, self.h)
        low, high, rest = dots.split([1, 1, k + 3], dim=1)
        span = _range(low, high)
        self.chosen, self.own = nodes[:, 2 : k + 2].contiguous(), (low, span, rest[:, :k])
        cost = self.cost(pairs.rows, nodes[:, 2:], rest, span, label)
        near, low, high = cost.split([k + 1, 1, 1], dim=1)
        gap, self.degree = self.gaps(near, found)
        gap = gap / _range(low, high)  # D_(k+1) − D_(p)
        share = self.degree.clamp(min=1).to(gap.dtype).reciprocal()
        total = gap.sum(1, keepdim=True)  # 2γ_i; γ is a mean over the graph
        self.scale = F.threshold(_graph_mean(total, pairs) + 1e-8, GAMMA_FLOOR, GAMMA_FLOOR)
        rate = self.scale.reciprocal()  # 1 / 2γ
        # 1/k + (mean_p D_i(p) − D_ij) / 2γ = η_i − D_ij / 2γ
        self.without_context = share + (gap - total * share) * rate
        # λ / 2γ, or 0 so that the only possible neighbour has weight 1
        self.context_share = self.lam * rate * (found > 1)

    def label(self, block: Block) -> Tensor:
        """2βL_ij [R, W]."""
        same = self.same(block.rows, block.columns)
        if same is None:
            return self.square.new_zeros(1, 1)
        label = (same if block.barred is None else same & ~block.barred).to(self.square.dtype)
        share = (label.sum(1, keepdim=True) + 1).reciprocal_().mul_(2 * self.beta)
        return label.mul_(share).scatter_(1, block.itself, 2 * share)

    def cost(self, i: Tensor, j: Tensor, dots: Tensor, span: Tensor, label: Tensor) -> Tensor:
        """d − 2βL − 1e-5·N(HHᵀ) from ⟨h_i, h_j⟩ and its range, up to a number for each row i."""
        d2 = torch.add(at(self.square, i)[:, None] + at(self.square, j), dots, alpha=-2)
        d = F.threshold(d2, 1e-12, 1e-12).sqrt()
        return torch.addcdiv(d, dots, span, value=-1e-5) - label

    def weigh(self, f: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        def choose(block: Block, dots: Tensor) -> tuple[Tensor]:
            position = at(self.position, block.rows)
            ends = [_lowest(dots).indices, _highest(dots).indices]
            return (torch.cat([*ends, position], dim=1),)

        if f is self.h:
            low, span, dots = self.own
        else:
            _, dots = self.pairs.select(choose, f)
            low, high, dots = dots.split([1, 1, self.k], dim=1)
            span = _range(low, high)
        weight = self.without_context + self.context_share / span * (dots - low)
        return self.chosen, weight, self.degree


def _lowest(values: Tensor) -> torch.return_types.min:
    """Each row's smallest number [R, 1], where there is one, and its position."""
    return values.nan_to_num(torch.inf, torch.inf, torch.inf).min(1, keepdim=True)


def _highest(values: Tensor) -> torch.return_types.max:
    """Each row's largest number [R, 1], where there is one, and its position."""
    return values.nan_to_num(-torch.inf, -torch.inf, -torch.inf).max(1, keepdim=True)


def _range(low: Tensor, high: Tensor) -> Tensor:
    """high − low [R, 1] of a row's smallest and largest value, held above `RANGE_FLOOR`."""
    span = high - low
    floor = RANGE_FLOOR * torch.maximum(high, -low).detach().clamp(min=1)
    return torch.where(span < floor, floor, span)  # its gradient takes fewer kernels than clamp's


def _graph_mean(values: Tensor, pairs: Pairs) -> Tensor:
    """Mean of the finite values [R, 1] over all rows, or [R, 1] over those of each row's graph."""
    finite = values.detach() < torch.inf  # they are never negative
    values = values.masked_fill(~finite, 0)
    if pairs.graph is None:
        return values.sum() / finite.sum().clamp(min=1)
    rows = pairs.graph[pairs.rows]
    zeros = values.new_zeros(pairs.graph.size(0), 1)
    total, size = (zeros.index_add(0, rows, part) for part in (values, finite.to(values.dtype)))
    return (total / size.clamp(min=1))[rows]
