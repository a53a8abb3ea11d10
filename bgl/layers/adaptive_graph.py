"""The DyBGR graph learner: a sparse batch graph in closed form."""

from __future__ import annotations

import warnings
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bgl._checks import (
    check_choice,
    check_index_vector,
    check_int,
    check_matrix,
    check_real,
    describe,
    readable,
)
from bgl._precision import at_least_float32
from bgl.layers.pairs import Gram, Graph, Neighbors, Pairs

# Smallest denominators: they bound the gradients (see `AdaptiveGraph`) and lie far below the
# values of any batch that is not degenerate.
RANGE_FLOOR = 1e-6  # of a row's max - min, relative to max(1, largest entry of the two)
GAMMA_FLOOR = 1e-3  # of 2γ, released formulation
GAP_FLOOR = 1e-4  # of Σ_p (c_(k+1) - c_(p)), paper formulation
NORM_FLOOR = 1e-6  # of |h|, paper formulation


class _State(NamedTuple):
    """What stays fixed while the features are refined (see `AdaptiveGraph.prepare`)."""

    pairs: Pairs
    y: Tensor | None
    k: int
    degree: Tensor | None  # [N, 1] neighbours of each row where it varies; None: always k
    bounded: Tensor | bool  # [N, 1] or bool: is there a (k+1)-th neighbour?
    x: Tensor  # [N, C] as given; where it is the context too, its products serve twice
    gram: Gram | None = None  # ⟨h_i, h_j⟩; paper: ⟨ĥ_i, ĥ_j⟩
    # released: the neighbours, chosen once, and their costs, from which the mean is taken
    chosen: Tensor | None = None  # [N, k]
    preference: Tensor | None = None  # [N, k] mean_p D_i(p) − D_ij
    scale: Tensor | None = None  # 2γ, scalar or [N, 1]
    # paper
    square: Tensor | None = None  # [N] |ĥ_i|²

    @property
    def size(self) -> Tensor | int:
        """Neighbours per row, at least 1."""
        return self.k if self.degree is None else self.degree.clamp(min=1)

    def same(self, rows: slice, nodes: Tensor | None = None) -> Tensor:
        """S_ij at ``nodes`` [R, p], or at all columns of the rows."""
        assert self.y is not None
        labels = self.pairs.spread(self.y, rows) if nodes is None else self.y[nodes]
        return self.y[rows, None] == labels


class AdaptiveGraph(nn.Module):
    r"""Learns a sparse graph over the samples of a batch, in closed form and without parameters.

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
    :math:`L_{ij} = S_{ij} (1 + \delta_{ij}) / (n_i + 1)` (:math:`n_i` samples of i's class),

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

    Source: Wang et al., *Learning Dynamic Batch-Graph Representation for Deep Representation
    Learning*, IJCV 2024.

    Args:
        k: Number of neighbours, ≥ 1.
        lam: Weight λ of the contextual similarity, ≥ 0.
        beta: Weight β of the label correlation; negative values repel equal labels.
        formulation: ``"released"`` or ``"paper"``.

    Shapes:
        - ``x`` [N, C] features; ``context`` [N, C'] features of the previous iteration
          (default: ``x``); ``y`` [N] integer labels or None; ``batch`` [N] graph of each
          sample (numbers below N) or None; ``candidates`` [N, M] nodes to choose the
          neighbours from (distinct within a row; −1 marks a missing one), default all; with
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
        self, k: int = 30, lam: float = 0.3, beta: float = 0.5, formulation: str = "released"
    ) -> None:
        super().__init__()
        self.k = check_int(k, "k", 1)
        self.lam = check_real(lam, "lam", 0.0)
        self.beta = check_real(beta, "beta")
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
        state = self.prepare(x, y=y, batch=batch, candidates=candidates)
        return self.neighbors(state, x if context is None else context).edges()

    def prepare(
        self,
        x: Tensor,
        *,
        y: Tensor | None = None,
        batch: Tensor | None = None,
        candidates: Tensor | None = None,
    ) -> _State:
        """What does not change while the context is refined; pass it to :meth:`neighbors`."""
        _check(x, y, batch, candidates)
        pairs = Pairs(x.size(0), x.device, batch, candidates)
        k, degree, bounded = self._sizes(pairs)
        state = _State(pairs, y, k, degree, bounded, x)
        with torch.autocast(x.device.type, enabled=False):
            x = at_least_float32(x)
            if k == 0:
                return state
            if self.formulation == "paper":
                unit = _unit(x)
                return state._replace(gram=Gram(unit, pairs), square=unit.square().sum(1))
            return self._prepare_released(x, state)

    def neighbors(self, state: _State, context: Tensor) -> Neighbors:
        """The graph for one set of contextual features F [N, C']."""
        n = state.pairs.n
        check_matrix(context, "context")
        if context.size(0) != n:
            raise ValueError(
                f"Expected argument `context` to have {n} rows like `x`, got {context.size(0)}"
            )
        if state.k == 0:
            empty = context.new_zeros(n, 0)
            return Neighbors(empty.long(), at_least_float32(empty), None)
        with torch.autocast(context.device.type, enabled=False):
            gram = state.gram
            if gram is None or context is not state.x:
                wide = at_least_float32(context)
                gram = Gram(_unit(wide) if self.formulation == "paper" else wide, state.pairs)
            compute = self._paper if self.formulation == "paper" else self._released
            source, weight = compute(state, gram)
            mask = None
            if state.degree is not None:
                mask = torch.arange(state.k, device=weight.device) < state.degree
                weight = weight * mask
            return Neighbors(source, weight, mask)

    def _sizes(self, pairs: Pairs) -> tuple[int, Tensor | None, Tensor | bool]:
        """k as used, neighbours per row (None: always k), and whether a (k+1)-th exists."""
        possible = pairs.width - 1
        k = max(0, min(self.k, max(possible - 1, min(possible, 1))))
        if pairs.whole:
            if k < self.k and not torch.compiler.is_compiling():
                warnings.warn(
                    f"k={self.k} needs at least {self.k + 2} samples; "
                    f"k={k} is used for a batch of {possible + 1}",
                    stacklevel=4,
                )
            return k, None, possible > k
        free = pairs.blockwise(lambda rows: pairs.free(rows).sum(1, keepdim=True))
        degree = torch.minimum((free - 1).clamp(max=k).clamp(min=1), free)
        return k, degree, free > degree

    def _prepare_released(self, x: Tensor, state: _State) -> _State:
        pairs, k = state.pairs, state.k
        gram, square = Gram(x, pairs), x.square().sum(1)

        def choose(rows: slice) -> Tensor:
            """Where ⟨h_i, h_j⟩ and then D are smallest and largest, and the k+1 smallest D; last
            the number of i's class."""
            dots, row = gram.block(rows), pairs.row(rows)
            ends = _extremes(dots, row)
            d2 = square[rows, None] + pairs.spread(square, rows) - 2 * dots
            own = pairs.node[rows] == pairs.spread(pairs.node[:, 0], rows)
            if state.y is None:
                same, classmates = None, torch.zeros_like(ends[:, :1])
            else:
                same = state.same(rows) if row is None else state.same(rows) & row
                classmates = same.sum(1, keepdim=True)
            low, high = dots.gather(1, ends).unbind(1)
            cost = self._released_cost(d2, dots, low[:, None], high[:, None], own, same, classmates)
            nearest = cost.masked_fill(~pairs.free(rows), torch.inf).topk(k + 1, largest=False)
            position = torch.cat([ends, _extremes(cost, row), nearest.indices], dim=1)
            return torch.cat([pairs.nodes(position, rows), classmates], dim=1)

        with torch.no_grad():  # choose on whole rows, then differentiate at the entries chosen
            nodes, classmates = pairs.blockwise(choose).split([k + 5, 1], dim=1)
        dots = gram.at(nodes)
        low, high, dots = dots.split([1, 1, k + 3], dim=1)
        nodes = nodes[:, 2:]
        d2 = square[pairs.rows, None] + square[nodes] - 2 * dots
        same = None if state.y is None else state.same(pairs.rows, nodes)
        own = nodes == pairs.node[pairs.rows]
        cost = self._released_cost(d2, dots, low, high, own, same, classmates)
        gap = _gaps(_minmax(cost[:, 2:], cost[:, :1], cost[:, 1:2]), state)
        total = gap.sum(1, keepdim=True)
        gamma = 0.5 * total
        gamma = gamma.mean() if pairs.batch is None else _graph_mean(gamma, pairs.batch)
        return state._replace(
            gram=gram,
            chosen=nodes[:, 2 : k + 2],
            preference=gap - total / state.size,
            scale=(2 * gamma + 1e-8).clamp(min=GAMMA_FLOOR),
        )

    def _released_cost(
        self,
        d2: Tensor,
        dots: Tensor,
        low: Tensor,
        high: Tensor,
        own: Tensor,
        same: Tensor | None,
        classmates: Tensor,
    ) -> Tensor:
        """d − 2βL − 1e-5·N(HHᵀ), from |h_i − h_j|², ⟨h_i, h_j⟩ and its range, and labels."""
        distance = d2.masked_fill(own, 0.0).clamp(min=1e-12).sqrt()
        cost = distance - 1e-5 * _minmax(dots, low, high)
        if same is None:
            return cost
        return cost - 2 * self.beta / (classmates + 1) * same * (1 + own.to(cost.dtype))

    def _released(self, state: _State, context: Gram) -> tuple[Tensor, Tensor]:
        assert state.chosen is not None
        assert state.preference is not None and state.scale is not None
        pairs = state.pairs
        with torch.no_grad():
            ends = pairs.blockwise(
                lambda rows: pairs.nodes(_extremes(context.block(rows), pairs.row(rows)), rows)
            )
        dots = context.at(torch.cat([ends, state.chosen], dim=1))
        similarity = _minmax(dots[:, 2:], dots[:, :1], dots[:, 1:2])
        weight = (1 / state.size + (state.preference + self.lam * similarity) / state.scale).relu()
        if isinstance(state.bounded, Tensor):
            weight = torch.where(state.bounded, weight, 1.0)
        elif not state.bounded:  # the only possible neighbour
            weight = torch.ones_like(weight)
        return state.chosen, weight

    def _paper(self, state: _State, context: Gram) -> tuple[Tensor, Tensor]:
        assert state.gram is not None and state.square is not None
        pairs, k, gram, square = state.pairs, state.k, state.gram, state.square

        def cost(rows: slice, h: Tensor, f: Tensor, other: Tensor, nodes: Tensor | None) -> Tensor:
            value = square[rows, None] + other - 2 * h - self.lam * f
            if state.y is not None:
                value = value - 2 * self.beta * state.same(rows, nodes)
            return value

        def choose(rows: slice) -> Tensor:
            """The k+1 cheapest."""
            spread = pairs.spread(square, rows)
            value = cost(rows, gram.block(rows), context.block(rows), spread, None)
            value = value.masked_fill(~pairs.free(rows), torch.inf)
            return pairs.nodes(value.topk(k + 1, largest=False).indices, rows)

        with torch.no_grad():  # choose on whole rows, then differentiate at the entries chosen
            nodes = pairs.blockwise(choose)
        value = cost(pairs.rows, gram.at(nodes), context.at(nodes), square[nodes], nodes)
        gap = _gaps(value, state)
        total = gap.sum(1, keepdim=True)
        weight = 1 / state.size + (gap - total / state.size) / total.clamp(min=GAP_FLOOR)
        # the last weights can be -1e-16 by rounding
        return nodes[:, :k], weight.clamp(min=0)

    def extra_repr(self) -> str:
        return f"k={self.k}, lam={self.lam}, beta={self.beta}, formulation={self.formulation!r}"


def _check(x: Tensor, y: Tensor | None, batch: Tensor | None, candidates: Tensor | None) -> None:
    check_matrix(x)
    if y is not None:
        check_index_vector(y, x.size(0), "y")
    if batch is not None:
        check_index_vector(batch, x.size(0), "batch")
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
    if candidates.numel() and readable(candidates):
        low, high = (int(v) for v in candidates.aminmax())
        if low < -1 or high >= x.size(0):
            raise ValueError(
                f"Expected argument `candidates` to hold numbers of {x.size(0)} nodes, or -1, but "
                f"got values from {low} to {high}"
            )


def _gaps(cost: Tensor, state: _State) -> Tensor:
    """c_(k+1) − c_(p) for the k cheapest, from the k+1 cheapest [N, k+1]; 0 where padded.

    Differences come first since the costs of almost equal rows cancel exactly. Rows without a
    (k+1)-th neighbour are compared with their k-th.
    """
    k = state.k
    if state.degree is None:
        return (cost[:, k:] if state.bounded else cost[:, k - 1 : k]) - cost[:, :k]
    last = torch.where(torch.as_tensor(state.bounded), state.degree, state.degree - 1)
    gap = cost.gather(1, last.clamp(min=0)) - cost[:, :k]
    return gap * (torch.arange(k, device=cost.device) < state.degree)


def _minmax(values: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """(values − low) / (high − low), the range held above `RANGE_FLOOR`."""
    floor = RANGE_FLOOR * torch.maximum(low.abs(), high.abs()).detach().clamp(min=1)
    return (values - low) / torch.maximum(high - low, floor)


def _graph_mean(values: Tensor, batch: Tensor) -> Tensor:
    """Each row's [R, 1] mean over its graph; graphs are numbered below N, as PyG does."""
    rows = batch[: values.size(0)]
    total = values.new_zeros(batch.size(0), 1).index_add(0, rows, values)
    size = torch.zeros_like(total).index_add(0, rows, torch.ones_like(values))
    return (total / size.clamp(min=1))[rows]


def _extremes(values: Tensor, row: Tensor | None) -> Tensor:
    """Positions [R, 2] of each row's smallest and largest value."""
    low = values if row is None else values.masked_fill(~row, torch.inf)
    high = values if row is None else values.masked_fill(~row, -torch.inf)
    return torch.stack([low.argmin(1), high.argmax(1)], dim=1)


def _unit(x: Tensor) -> Tensor:
    return F.normalize(x, dim=1, eps=NORM_FLOOR)
