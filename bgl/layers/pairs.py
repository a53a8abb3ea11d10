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
        target = torch.arange(len(self.source), device=self.source.device)[:, None]
        edge_index = torch.stack([self.source.long(), target.expand_as(self.source)]).flatten(1)
        edge_weight = self.weight.flatten()
        if self.mask is None or padded:
            return edge_index, edge_weight
        eager = readable(self.mask) and not torch.compiler.is_compiling()
        if eager and bool(self.mask.all()):  # nothing is copied
            return edge_index, edge_weight
        keep = self.mask.flatten().nonzero()[:, 0]
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
        if candidates is not None:
            self.width, self.keeps = candidates.size(1) + 1, True
            self.blocks = self._among(candidates)
            return
        runs = [[n]] if self.graph is None else self._runs(self.graph)
        self.width = max(max(run) for run in runs)
        self.keeps = n * self.width <= kept_pairs(device, n * self.width)
        parts = [self.rows]
        if self.graph is not None and len(runs) > 1:
            order = self.graph.argsort(stable=True)
            parts = list(order.split([sum(run) for run in runs]))
        self.blocks = [
            block
            for nodes, run in zip(parts, runs, strict=True)
            for block in self._within(nodes, self.graph if len(run) > 1 else None)
        ]

    def _among(self, candidates: Tensor) -> list[Block]:
        """Each row itself and its candidates, of which each counts once."""
        own = self.rows[:, None]
        candidates = candidates.int().sort(dim=1).values  # the largest tensor there is
        barred = (candidates < 0) | (candidates == own)
        barred[:, 1:] |= candidates.diff(dim=1) == 0
        candidates = candidates.clamp(min=0)
        if self.graph is not None:
            barred |= self.graph[candidates] != self.graph[own]
        columns, itself = torch.cat([own.int(), candidates], dim=1), torch.zeros_like(own)
        parts = [self.rows, columns, itself, F.pad(barred, (1, 0))]
        step = max(1, block_pairs(own.device, columns.numel()) // self.width)
        return [Block(*part) for part in zip(*(t.split(step) for t in parts), strict=True)]

    @staticmethod
    def _runs(graph: Tensor) -> list[list[int]]:
        """Sizes of the graphs in their order, in runs that are looked at together.

        On an accelerator reading the sizes waits for the device, so one block of all pairs is
        looked at as long as it fits, and wherever there are no values.
        """
        n = graph.numel()
        waits = type(graph) is Tensor and not torch.compiler.is_compiling()
        if not readable(graph) and not (waits and n * n > block_pairs(graph.device, n * n)):
            return [[n, 0]]  # as if of two graphs
        runs: list[list[int]] = []
        for size in graph.bincount().tolist():
            if runs and sum(runs[-1]) + size <= TOGETHER:
                runs[-1].append(size)
            else:
                runs.append([size])
        return runs or [[0]]

    @staticmethod
    def _within(nodes: Tensor, graph: Tensor | None) -> list[Block]:
        """Blocks of rows for all pairs of some nodes; ``graph`` where they are of several."""
        n = nodes.size(0)
        most = block_pairs(nodes.device, n * n)
        step = n if n * n <= most else max(1, most // n)
        position = torch.arange(n, device=nodes.device)[:, None]
        return [
            Block(rows, nodes, itself, None if graph is None else graph[rows, None] != graph[nodes])
            for rows, itself in zip(nodes.split(step), position.split(step), strict=True)
        ]

    def products(self, x: Tensor) -> list[Tensor] | None:
        """⟨x_i, x_j⟩ of every block, where they are to be kept."""
        with torch.no_grad():
            return [block.products(x) for block in self.blocks] if self.keeps else None

    def select(
        self,
        choose: Callable[..., tuple[Tensor, ...]],
        *features: Tensor,
        products: list[Tensor] | None = None,
    ) -> tuple[Tensor, ...]:
        """Choose nodes by whole rows of products, to differentiate the chosen products alone.

        Args:
            choose: Given a block and its products ⟨x_i, x_j⟩ for each of the features, it returns
                positions among the columns [R, p], and anything else that there is of each row.
            features: What is compared [N, C], once or more.
            products: Those of the first features, where they were kept.

        Returns:
            The nodes [N, p], the products with them for each of the features, and the rest.
        """
        found: list[Tensor] = []
        with torch.no_grad():
            for i, block in enumerate(self.blocks):
                dots = [] if products is None else [products[i]]
                dots += [block.products(x) for x in features[len(dots) :]]
                position, *rest = choose(block, *dots)
                chosen = [each.gather(1, position) for each in dots]
                nodes = position if self.whole else block.nodes(position)
                part = [nodes, *chosen, *rest]
                if len(self.blocks) == 1:
                    found = part
                    break
                # made at once: small tensors between the large ones of blocks would tear the heap
                found = found or [each.new_empty(len(self.rows), each.size(1)) for each in part]
                for whole, each in zip(found, part, strict=True):
                    whole[block.rows] = each
        nodes, end = found[0], 1 + len(features)
        differentiable = [
            neighbor_products(at(x, self.rows), x, nodes, known)
            for x, known in zip(features, found[1:end], strict=True)
        ]
        return nodes, *differentiable, *found[end:]
