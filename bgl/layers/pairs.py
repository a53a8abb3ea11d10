"""The pairs of samples among which a graph is learned, and the graph as a list of neighbours."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

Graph = tuple[Tensor, Tensor]  # edge_index [2, E], edge_weight [E]

# Up to this many samples all inner products are kept, N × N; beyond, rows are looked at in blocks.
DENSE_SAMPLES = 2048
# Pairs in a block of rows, and pairs whose features are gathered at a time.
BLOCK_PAIRS = 2**23
GATHERED_PAIRS = 2**15


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


class Pairs:
    """The pairs (i, j) that a row may use: all of its graph, or i itself and its candidates.

    Row i is compared with the nodes of its *columns*, itself among them: column j is node j, or
    with candidates the j-th of (i, its candidates). Masks and inner products over all columns are
    made for a block of rows at a time, so that memory does not grow with N².

    Args:
        n: Number of samples N.
        device: Where they are.
        batch: Graph of each sample [N], or None for one graph.
        candidates: Nodes that each row may choose [R, M] (−1 for none), or None for all. With
            R < N the other samples are no rows, only chosen.
    """

    def __init__(
        self,
        n: int,
        device: torch.device,
        batch: Tensor | None = None,
        candidates: Tensor | None = None,
    ) -> None:
        self.n = n
        self.batch = batch
        self.node = torch.arange(n, device=device)[:, None]
        self.columns: Tensor | None = None
        self.rows = slice(0, n)
        if candidates is not None:
            self.rows = slice(0, candidates.size(0))
            self.columns = torch.cat([self.node[self.rows], candidates.long()], dim=1)

    @property
    def width(self) -> int:
        """Columns of a row."""
        return self.n if self.columns is None else self.columns.size(1)

    @property
    def whole(self) -> bool:
        """May every row use every other sample?"""
        return self.batch is None and self.columns is None

    @property
    def dense(self) -> bool:
        """Are all inner products kept at once?"""
        return self.columns is None and self.n <= DENSE_SAMPLES

    def blockwise(self, look: Callable[[slice], Tensor]) -> Tensor:
        """``look(rows)`` for one block of rows after the other, put together."""
        if self.dense:
            return look(slice(None))
        most = BLOCK_PAIRS if self.columns is None else GATHERED_PAIRS
        step, end = max(1, most // self.width), self.rows.stop
        return torch.cat([look(slice(i, min(i + step, end))) for i in range(0, end, step)])

    def spread(self, values: Tensor, rows: slice) -> Tensor:
        """A value per node at the columns of some rows: [N] -> [1 or R, W]."""
        if self.columns is None:
            return values[None, :]
        return values[self.columns[rows].clamp(min=0)]

    def nodes(self, position: Tensor, rows: slice) -> Tensor:
        """The nodes behind column positions [R, p]; missing candidates become node 0."""
        if self.columns is None:
            return position
        return self.columns[rows].gather(1, position).clamp(min=0)

    def row(self, rows: slice) -> Tensor | None:
        """The columns [R, W] that belong to each row, itself among them; None: all."""
        if self.whole:
            return None
        graph = self.node.new_ones(1, 1, dtype=torch.bool)
        if self.batch is not None:
            graph = self.batch[rows, None] == self.spread(self.batch, rows)
        if self.columns is None:
            return graph
        columns = self.columns[rows]
        itself = torch.zeros_like(columns, dtype=torch.bool)
        itself[:, 0] = True
        return itself | (graph & (columns >= 0) & (columns != columns[:, :1]))

    def free(self, rows: slice) -> Tensor:
        """The columns [R, W] that may become neighbours."""
        others = self.node[rows] != self.spread(self.node[:, 0], rows)
        row = self.row(rows)
        return others if row is None else others & row


class Gram:
    """Inner products ⟨x_i, x_j⟩: looked at in blocks of rows, differentiated at a few entries.

    Args:
        x: Features [N, C].
        pairs: The pairs that matter; "rows" are its rows.
    """

    def __init__(self, x: Tensor, pairs: Pairs) -> None:
        self.x = x
        self.pairs = pairs
        self.kept: Tensor | None = None
        self.matrix = x @ x.t() if pairs.dense else None
        if pairs.columns is not None and not (x.requires_grad and torch.is_grad_enabled()):
            self.kept = pairs.blockwise(self.block)  # few: as many as there are candidates

    def block(self, rows: slice) -> Tensor:
        """The products with all columns of some rows [R, W], without gradient."""
        if self.matrix is not None:
            return self.matrix.detach()[rows]
        if self.kept is not None:
            return self.kept[rows]
        x = self.x.detach()
        if self.pairs.columns is None:
            return x[rows] @ x.t()
        return torch.einsum("rc,rwc->rw", x[rows], x[self.pairs.columns[rows].clamp(min=0)])

    def at(self, nodes: Tensor) -> Tensor:
        """The products of all rows with ``nodes`` [R, p], with gradient."""
        if self.matrix is not None:
            return self.matrix.gather(1, nodes)
        if self.kept is not None:
            return torch.cat([self._find(nodes[rows], rows) for rows in _pieces(nodes)])
        products: Tensor = _PairDots.apply(self.x, nodes)
        return products

    def _find(self, nodes: Tensor, rows: slice) -> Tensor:
        assert self.kept is not None and self.pairs.columns is not None
        position = self.pairs.columns[rows, None, :] == nodes[:, :, None]
        return self.kept[rows].gather(1, position.to(torch.uint8).argmax(2))


class _PairDots(torch.autograd.Function):
    """⟨x_i, x_j⟩ at [R, p] given j, in O(R·p) memory: features are gathered piece by piece."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, nodes: Tensor) -> Tensor:
        ctx.save_for_backward(x, nodes)
        return torch.cat([torch.einsum("rc,rpc->rp", x[r], x[nodes[r]]) for r in _pieces(nodes)])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        x, nodes = ctx.saved_tensors
        grad_x = torch.zeros_like(x)
        for r in _pieces(nodes):
            grad_x[r] += torch.einsum("rp,rpc->rc", grad[r], x[nodes[r]])
            messages = grad[r][:, :, None] * x[r][:, None, :]
            grad_x.index_add_(0, nodes[r].flatten(), messages.flatten(0, 1))
        return grad_x, None


def _pieces(nodes: Tensor) -> list[slice]:
    step = max(1, GATHERED_PAIRS // nodes.size(1))
    end = nodes.size(0)
    return [slice(i, min(i + step, end)) for i in range(0, end, step)]
