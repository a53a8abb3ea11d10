"""The pairs of samples among which a graph is learned, and the graph as a list of neighbours."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from bgl._checks import readable
from bgl._precision import exact_matmul
from bgl._sizes import TOGETHER, block_pairs, kept_pairs
from bgl.layers.edge_sums import neighbor_products, neighbor_sums
from bgl.layers.groups import group_numbers

Graph = tuple[Tensor, Tensor]  # edge_index [2, E], edge_weight [E]


class Neighbors(NamedTuple):
    """A learned graph as a fixed number of neighbours per node.

    ``mask`` is None where every entry is an edge, else False marks padding: the node itself with
    weight 0.
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

    def sums(self, x: Tensor) -> Tensor:
        """Σ_j a_ij x_j [N, C]."""
        return neighbor_sums(x, self.source, self.weight)


def at(values: Tensor, nodes: Tensor) -> Tensor:
    """``values[nodes]``, without a copy for all nodes, which always come in order."""
    return values if nodes.shape == values.shape[:1] else values[nodes]


class Block(NamedTuple):
    """Some rows i and the nodes j that each is compared with, its columns, itself among them."""

    rows: Tensor  # [R]
    columns: Tensor  # [W], or [R, W] where every row has its own
    itself: Tensor  # [R, 1] position of the row among its columns
    barred: Tensor | None  # [R, W] pairs that may not become edges; None: there are none

    def products(self, x: Tensor) -> Tensor:
        """⟨x_i, x_j⟩ [R, W], NaN where the pair is barred."""
        if self.columns.dim() == 2:
            dots = neighbor_products(at(x, self.rows), x, self.columns)
        else:
            dots = exact_matmul(at(x, self.rows), at(x, self.columns).t())
        return dots if self.barred is None else dots.masked_fill(self.barred, torch.nan)

    def nodes(self, position: Tensor) -> Tensor:
        """The nodes behind positions of columns [R, p]."""
        return self.columns.expand(position.size(0), -1).gather(1, position)


class Pairs:
    """The pairs (i, j) that may become edges, a block of rows at a time.

    What is made for all columns of a block is forgotten after it: memory does not grow with N².
    The nodes of a graph are looked at among themselves, graph by graph, sorted or not.

    Args:
        n: Number of samples N.
        device: Where they are.
        batch: Graph of each sample [N], or None for one graph.
        candidates: Nodes that each row may choose [R, M] (−1 for none), or None for all. With
            R < N the other samples are no rows, only chosen.
    """

    def __init__(
        self, n: int, device: torch.device, batch: Tensor | None, candidates: Tensor | None
    ) -> None:
        self.whole = batch is None and candidates is None  # may each row use all other samples?
        self.graph = None if batch is None else group_numbers(batch)
        self.rows = torch.arange(n if candidates is None else candidates.size(0), device=device)
        self.place: Tensor | None = None  # of each row among the rows of all blocks, if not its own
        if candidates is not None:
            self.width = candidates.size(1) + 1
            self.blocks = self._among(candidates.long())
            self.keeps, self.one_block = True, False  # as many products as there are candidates
            return
        sizes = [n] if self.graph is None else self._sizes(self.graph)
        self.width = n if sizes is None else max(sizes, default=0)
        self.keeps = n * self.width <= kept_pairs(device, n * self.width)
        if self.graph is None or sizes is None:
            self.blocks = self._within(self.rows, self.graph)
        else:
            self.blocks = self._graphs(self.graph, sizes)
        self.one_block = len(self.blocks) == 1  # of all nodes in their order

    def _among(self, candidates: Tensor) -> list[Block]:
        """Each row itself and its candidates, of which each counts once."""
        own = self.rows[:, None]
        candidates = candidates.sort(dim=1).values
        barred = (candidates < 0) | (candidates == own)
        barred[:, 1:] |= candidates.diff(dim=1) == 0
        candidates = candidates.clamp(min=0)
        if self.graph is not None:
            barred |= self.graph[candidates] != self.graph[own]
        columns, itself = torch.cat([own, candidates], dim=1), torch.zeros_like(own)
        parts = [self.rows, columns, itself, F.pad(barred, (1, 0))]
        step = max(1, block_pairs(own.device, columns.numel()) // self.width)
        return [Block(*part) for part in zip(*(t.split(step) for t in parts), strict=True)]

    def _sizes(self, graph: Tensor) -> list[int] | None:
        """Nodes per graph, in the order of the graphs.

        On an accelerator reading the sizes waits for the device, so one block of all pairs is
        looked at as long as it fits; None then, and wherever there are no values.
        """
        pairs = graph.numel() ** 2
        waits = type(graph) is Tensor and not torch.compiler.is_compiling()
        if not readable(graph) and not (waits and pairs > block_pairs(graph.device, pairs)):
            return None
        return graph.bincount().tolist()

    def _graphs(self, graph: Tensor, sizes: list[int]) -> list[Block]:
        """Blocks for every graph; small ones are looked at together."""
        runs: list[list[int]] = []
        for size in sizes:
            if runs and sum(runs[-1]) + size <= TOGETHER:
                runs[-1].append(size)
            else:
                runs.append([size])
        if len(runs) <= 1:
            return self._within(self.rows, graph if len(sizes) > 1 else None)
        order = graph.argsort(stable=True)
        self.place = order.argsort()
        parts = order.split([sum(run) for run in runs])
        return [
            block
            for run, nodes in zip(runs, parts, strict=True)
            for block in self._within(nodes, graph if len(run) > 1 else None)
        ]

    @staticmethod
    def _within(nodes: Tensor, graph: Tensor | None) -> list[Block]:
        """Blocks of rows for all pairs of some nodes; ``graph`` where they are of several."""
        n = nodes.size(0)
        most = block_pairs(nodes.device, n * n)
        position = torch.arange(n, device=nodes.device)[:, None]
        parts = [(nodes, position)]
        if n * n > most:
            step = max(1, most // n)
            parts = list(zip(nodes.split(step), position.split(step), strict=True))
        return [
            Block(rows, nodes, itself, None if graph is None else graph[rows, None] != graph[nodes])
            for rows, itself in parts
        ]

    def blockwise(
        self, choose: Callable[..., tuple[Tensor, ...]], *products: Products
    ) -> tuple[Tensor, ...]:
        """What ``choose`` finds for the rows of each block and their products, put together."""
        with torch.no_grad():
            parts = [
                choose(block, *(p.block(i) for p in products))
                for i, block in enumerate(self.blocks)
            ]
            found = parts[0] if len(parts) == 1 else tuple(map(torch.cat, zip(*parts, strict=True)))
            return found if self.place is None else tuple(part[self.place] for part in found)


class Products:
    """Inner products ⟨x_i, x_j⟩: looked at in blocks, differentiated where they are chosen.

    Args:
        x: Features [N, C].
        pairs: The pairs that matter.
    """

    def __init__(self, x: Tensor, pairs: Pairs) -> None:
        self.x, self.pairs = x, pairs
        with torch.no_grad():
            self.kept = [block.products(x) for block in pairs.blocks] if pairs.keeps else None

    def block(self, i: int) -> Tensor:
        """The products of block ``i`` [R, W]."""
        return self.pairs.blocks[i].products(self.x) if self.kept is None else self.kept[i]

    def at(self, nodes: Tensor) -> Tensor:
        """The products of all rows with ``nodes`` [R, p]."""
        known = None
        if self.kept is not None and self.pairs.one_block:
            known = self.kept[0].gather(1, nodes)
        return neighbor_products(self.x[: nodes.size(0)], self.x, nodes, known)
