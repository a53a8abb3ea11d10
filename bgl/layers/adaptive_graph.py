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
)

Graph = tuple[Tensor, Tensor]  # edge_index [2, E], edge_weight [E]

# Smallest denominators: they bound the gradients (see `AdaptiveGraph`) and lie far below the
# values of any batch that is not degenerate.
RANGE_FLOOR = 1e-6  # of a row's max - min, relative to max(1, largest entry of the two)
GAMMA_FLOOR = 1e-3  # of 2γ, released formulation
GAP_FLOOR = 1e-4  # of Σ_p (c_(k+1) - c_(p)), paper formulation
NORM_FLOOR = 1e-6  # of |h|, paper formulation


class Neighbors(NamedTuple):
    """A learned graph as a fixed number of neighbours per node.

    ``mask`` is None where every entry is an edge, else False marks padding (its weight is 0).
    """

    source: Tensor  # [N, k] nodes j
    weight: Tensor  # [N, k] a_ij
    mask: Tensor | None  # [N, k]

    def edges(self, padded: bool = False) -> Graph:
        """The graph as ``(edge_index, edge_weight)``, target by target.

        ``padded=True`` keeps the padding as edges of weight 0, so that the number of edges does
        not depend on values (nothing waits for the device, a compiled graph stays whole).
        """
        n, k = self.source.shape
        target = torch.arange(n, device=self.source.device).repeat_interleave(k)
        edge_index = torch.stack([self.source.flatten(), target])
        edge_weight = self.weight.flatten()
        if self.mask is None or padded:
            return edge_index, edge_weight
        keep = self.mask.flatten()
        return edge_index[:, keep], edge_weight[keep]


class Pairs(NamedTuple):
    """The pairs (i, j) that a row may use: all of them, or i itself and its candidates.

    A row's *columns* are the nodes it is compared with, itself among them. ``free`` marks the
    columns that may become neighbours, ``row`` those that belong to the row at all.
    """

    columns: Tensor | None  # [N, M] node of each column; None: column j is node j
    own: Tensor  # [N, 1] the column that holds the row's own node
    free: Tensor  # [N, M]
    row: Tensor | None  # [N, M]; None: all columns

    def dots(self, x: Tensor) -> Tensor:
        """Inner products ⟨x_i, x_j⟩ for every column, [N, M]."""
        if self.columns is None:
            return x @ x.t()
        return torch.einsum("nc,nmc->nm", x, x[self.columns])

    def at_columns(self, values: Tensor) -> Tensor:
        """A value per node, spread to the columns: [N] -> [N, M] or [1, M]."""
        return values[None, :] if self.columns is None else values[self.columns]

    def nodes(self, position: Tensor) -> Tensor:
        """The nodes behind column positions [N, p]."""
        return position if self.columns is None else self.columns.gather(1, position)

    def extremes(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Positions [N, 1] of each row's smallest and largest value."""
        low = high = values
        if self.row is not None:
            low = values.masked_fill(~self.row, torch.inf)
            high = values.masked_fill(~self.row, -torch.inf)
        return low.argmin(1, keepdim=True), high.argmax(1, keepdim=True)


class _State(NamedTuple):
    """What stays fixed while the features are refined (see `AdaptiveGraph.prepare`)."""

    pairs: Pairs
    k: int
    degree: Tensor | None  # [N, 1] neighbours of each row where it varies; None: always k
    bounded: Tensor | bool  # [N, 1] or bool: is there a (k+1)-th neighbour?
    same: Tensor | None  # [N, M] S_ij, or None without labels
    batch: Tensor | None
    # released: the neighbours, chosen once, and their costs, from which the mean is taken
    position: Tensor | None = None  # [N, k]
    preference: Tensor | None = None  # [N, k] mean_p D_i(p) − D_ij
    scale: Tensor | None = None  # 2γ, scalar or [N, 1]
    # paper: the part of the cost that does not depend on the context
    gram: Tensor | None = None  # [N, M] ⟨ĥ_i, ĥ_j⟩
    square: Tensor | None = None  # [N] |ĥ_i|²

    @property
    def size(self) -> Tensor | int:
        """Neighbours per row, at least 1."""
        return self.k if self.degree is None else self.degree.clamp(min=1)


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
          neighbours from (distinct within a row; −1 marks a missing one), default all
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
        y: Tensor | None = None,
        batch: Tensor | None = None,
        context: Tensor | None = None,
        candidates: Tensor | None = None,
    ) -> Graph:
        state = self.prepare(x, y, batch, candidates)
        return self.neighbors(state, x if context is None else context).edges()

    def prepare(
        self,
        x: Tensor,
        y: Tensor | None = None,
        batch: Tensor | None = None,
        candidates: Tensor | None = None,
    ) -> _State:
        """What does not change while the context is refined; pass it to :meth:`neighbors`."""
        _check(x, y, batch, candidates)
        with torch.autocast(x.device.type, enabled=False):
            x = _at_least_float32(x)
            pairs = _make_pairs(x.size(0), x.device, batch, candidates)
            k, degree, bounded = self._sizes(pairs)
            same = None
            if y is not None:
                same = y[:, None] == pairs.at_columns(y)
                if pairs.row is not None:
                    same = same & pairs.row
            state = _State(pairs, k, degree, bounded, same, batch)
            if k == 0:
                return state
            if self.formulation == "paper":
                unit = _unit(x)
                return state._replace(gram=pairs.dots(unit), square=unit.square().sum(1))
            return self._prepare_released(x, state)

    def neighbors(self, state: _State, context: Tensor) -> Neighbors:
        """The graph for one set of contextual features F [N, C']."""
        n = state.pairs.own.size(0)
        check_matrix(context, "context")
        if context.size(0) != n:
            raise ValueError(
                f"Expected argument `context` to have {n} rows like `x`, got {context.size(0)}"
            )
        if state.k == 0:
            empty = context.new_zeros(n, 0)
            return Neighbors(empty.long(), _at_least_float32(empty), None)
        with torch.autocast(context.device.type, enabled=False):
            context = _at_least_float32(context)
            if self.formulation == "paper":
                position, weight = self._paper(state, context)
            else:
                position, weight = self._released(state, context)
            mask = None
            if state.degree is not None:
                mask = torch.arange(state.k, device=weight.device) < state.degree
                weight = weight * mask
            return Neighbors(state.pairs.nodes(position), weight, mask)

    def _sizes(self, pairs: Pairs) -> tuple[int, Tensor | None, Tensor | bool]:
        """k as used, neighbours per row (None: always k), and whether a (k+1)-th exists."""
        possible = pairs.free.size(1) - 1
        k = min(self.k, max(possible - 1, min(possible, 1)))
        if pairs.row is None:
            if k < self.k and not torch.compiler.is_compiling():
                warnings.warn(
                    f"k={self.k} needs at least {self.k + 2} samples; "
                    f"k={k} is used for a batch of {possible + 1}",
                    stacklevel=4,
                )
            return k, None, possible > k
        free = pairs.free.sum(1, keepdim=True)
        degree = torch.minimum((free - 1).clamp(max=k).clamp(min=1), free)
        return k, degree, free > degree

    def _prepare_released(self, x: Tensor, state: _State) -> _State:
        pairs, k = state.pairs, state.k
        gram = pairs.dots(x)
        square = x.square().sum(1)
        with torch.no_grad():  # choose the entries on the full rows ...
            gram_low, gram_high = pairs.extremes(gram)
            everything = torch.arange(gram.size(1), device=x.device).expand_as(gram)
            cost = self._released_cost(state, everything, gram, square, gram_low, gram_high)
            low, high = pairs.extremes(cost)
            nearest = cost.masked_fill(~pairs.free, torch.inf).topk(k + 1, largest=False).indices
        # ... and differentiate through the few that are used
        position = torch.cat([low, high, nearest], dim=1)
        cost = self._released_cost(state, position, gram, square, gram_low, gram_high)
        gap = _gaps(_minmax(cost[:, 2:], cost[:, :1], cost[:, 1:2]), state)
        total = gap.sum(1, keepdim=True)
        gamma = 0.5 * total
        gamma = gamma.mean() if state.batch is None else _graph_mean(gamma, state.batch)
        return state._replace(
            position=nearest[:, :k],
            preference=gap - total / state.size,
            scale=(2 * gamma + 1e-8).clamp(min=GAMMA_FLOOR),
        )

    def _released_cost(
        self,
        state: _State,
        position: Tensor,
        gram: Tensor,
        square: Tensor,
        gram_low: Tensor,
        gram_high: Tensor,
    ) -> Tensor:
        """d − 2βL − 1e-5·N(HHᵀ) at the given columns [N, p]."""
        pairs = state.pairs
        dot = gram.gather(1, position)
        d2 = square[:, None] + square[pairs.nodes(position)] - 2 * dot
        own = position == pairs.own
        distance = d2.masked_fill(own, 0.0).clamp(min=1e-12).sqrt()
        cost = distance - 1e-5 * _minmax(dot, gram.gather(1, gram_low), gram.gather(1, gram_high))
        if state.same is not None:
            share = 2 * self.beta / (state.same.sum(1, keepdim=True) + 1)
            cost = cost - share * state.same.gather(1, position) * (1 + own.to(cost.dtype))
        return cost

    def _released(self, state: _State, context: Tensor) -> tuple[Tensor, Tensor]:
        assert state.position is not None
        assert state.preference is not None and state.scale is not None
        dots = state.pairs.dots(context)
        with torch.no_grad():
            low, high = state.pairs.extremes(dots)
        picked = dots.gather(1, torch.cat([low, high, state.position], dim=1))
        similarity = _minmax(picked[:, 2:], picked[:, :1], picked[:, 1:2])
        weight = (1 / state.size + (state.preference + self.lam * similarity) / state.scale).relu()
        if isinstance(state.bounded, Tensor):
            weight = torch.where(state.bounded, weight, 1.0)
        elif not state.bounded:  # the only possible neighbour
            weight = torch.ones_like(weight)
        return state.position, weight

    def _paper(self, state: _State, context: Tensor) -> tuple[Tensor, Tensor]:
        assert state.gram is not None and state.square is not None
        pairs, k = state.pairs, state.k
        dots = pairs.dots(_unit(context))
        constant = state.square[:, None] + pairs.at_columns(state.square)
        cost = constant - 2 * state.gram - self.lam * dots
        if state.same is not None:
            cost = cost - 2 * self.beta * state.same
        with torch.no_grad():
            nearest = cost.masked_fill(~pairs.free, torch.inf).topk(k + 1, largest=False).indices
        gap = _gaps(cost.gather(1, nearest), state)
        total = gap.sum(1, keepdim=True)
        weight = 1 / state.size + (gap - total / state.size) / total.clamp(min=GAP_FLOOR)
        # the last weights can be -1e-16 by rounding
        return nearest[:, :k], weight.clamp(min=0)

    def extra_repr(self) -> str:
        return f"k={self.k}, lam={self.lam}, beta={self.beta}, formulation={self.formulation!r}"


def _check(x: Tensor, y: Tensor | None, batch: Tensor | None, candidates: Tensor | None) -> None:
    check_matrix(x)
    if y is not None:
        check_index_vector(y, x.size(0), "y")
    if batch is not None:
        check_index_vector(batch, x.size(0), "batch")
    if candidates is not None and (
        candidates.dim() != 2
        or candidates.size(0) != x.size(0)
        or candidates.dtype not in (torch.int64, torch.int32)
    ):
        raise ValueError(
            f"Expected argument `candidates` to be an integer tensor of shape [{x.size(0)}, M], "
            f"but got {describe(candidates)}"
        )


def _make_pairs(
    n: int, device: torch.device, batch: Tensor | None, candidates: Tensor | None
) -> Pairs:
    node = torch.arange(n, device=device)
    if candidates is None:
        own = node[:, None]
        row = None if batch is None else batch[:, None] == batch[None, :]
        others = own != node[None, :]
        return Pairs(None, own, others if row is None else row & others, row)
    candidates = candidates.long()
    columns = torch.cat([node[:, None], candidates.clamp(min=0)], dim=1)
    others = columns != node[:, None]
    usable = candidates >= 0
    if batch is not None:
        usable = usable & (batch[columns[:, 1:]] == batch[:, None])
    free = others & torch.cat([others[:, :1], usable], dim=1)
    own = torch.zeros_like(node[:, None])
    return Pairs(columns, own, free, free.scatter(1, own, True))


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
    """Each row's [N, 1] mean over its graph; graphs are numbered below N, as PyG does."""
    total = torch.zeros_like(values).index_add(0, batch, values)
    size = torch.zeros_like(values).index_add(0, batch, torch.ones_like(values))
    return (total / size.clamp(min=1))[batch]


def _unit(x: Tensor) -> Tensor:
    return F.normalize(x, dim=1, eps=NORM_FLOOR)


def _at_least_float32(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()
