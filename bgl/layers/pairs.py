"""The pairs of samples among which a graph is learned, and the graph as a list of neighbours."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from bgl._checks import readable
from bgl._precision import exact_matmul
from bgl.layers.edge_sums import neighbor_products, neighbor_sums
from bgl.layers.groups import group_numbers
from bgl.layers.sizes import COMPILED_BLOCKS, TOGETHER, block_pairs, kept_pairs

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


class Block(NamedTuple):
    """Some rows, and the nodes that each is compared with, its *columns*, itself among them."""

    rows: slice
    columns: slice | Tensor  # a range of nodes, or the nodes of each row [R, W]
    graph: Tensor | None  # [N] graph of each node, where the columns are of several

    def products(self, x: Tensor) -> Tensor:
        """⟨x_i, x_j⟩ [R, W]."""
        if isinstance(self.columns, slice):
            return exact_matmul(x[self.rows], x[self.columns].t())
        return neighbor_products(x[self.rows], x, self.columns)

    def spread(self, values: Tensor) -> Tensor:
        """A value per node at the columns: [N] -> [1 or R, W]."""
        return (
            values[None, self.columns] if isinstance(self.columns, slice) else values[self.columns]
        )

    def nodes(self, position: Tensor) -> Tensor:
        """The nodes behind positions of columns [R, p]."""
        if isinstance(self.columns, slice):
            return position + (self.columns.start or 0)
        return self.columns.gather(1, position)

    def foreign(self) -> Tensor | None:
        """Which columns [R, W] are of another graph; None: none."""
        if self.graph is None:
            return None
        return self.graph[self.rows, None] != self.spread(self.graph)


class Pairs:
    """The pairs (i, j) that may become edges, a block of rows at a time.

    What is made for all columns of a block is forgotten after it: memory does not grow with N².
    A sorted ``batch`` is a row of ranges, and a block looks at the columns of its own graphs only.

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
        self.node = torch.arange(n, device=device)
        self.graph = None if batch is None else group_numbers(batch)
        self.order: Tensor | None = None  # where the samples have to be sorted by graph
        self.rows = slice(0, n if candidates is None else candidates.size(0))
        if candidates is not None:
            columns = self._columns(candidates.long())
            self.width, total = columns.size(1), columns.numel()
            step = max(1, block_pairs(device, total) // self.width)
            parts = [slice(i, min(i + step, len(columns))) for i in range(0, len(columns), step)]
            self.blocks = [Block(rows, columns[rows], None) for rows in parts]
            self.keeps = True  # as many products as there are candidates
            return
        sizes = None if self.graph is None else self._sizes(self.graph)
        self.width = n if sizes is None else max(sizes, default=0)
        self.blocks = self._ranges([n] if sizes is None else sizes)
        if self.graph is not None and sizes is None:
            self.blocks = [block._replace(graph=self.graph) for block in self.blocks]
        self.keeps = n * self.width <= kept_pairs(device, n * self.width)

    def _columns(self, candidates: Tensor) -> Tensor:
        """Each row itself and its candidates. Those that are missing, repeated, or of another
        graph are replaced by the row itself, which is never its own neighbour."""
        own = self.node[self.rows, None]
        candidates = candidates.sort(dim=1).values
        useless = candidates < 0
        useless[:, 1:] |= candidates.diff(dim=1) == 0
        if self.graph is not None:
            useless = useless | (self.graph[candidates.clamp(min=0)] != self.graph[own])
        return torch.cat([own, torch.where(useless, own, candidates)], dim=1)

    def _sizes(self, graph: Tensor) -> list[int] | None:
        """Nodes per graph, in the order of the graphs, sorting them where they are not.

        On an accelerator reading the sizes waits for the device, so one block of all pairs is
        looked at as long as it fits; None then, and wherever there are no values.
        """
        pairs = graph.numel() ** 2
        waits = type(graph) is Tensor and not torch.compiler.is_compiling()
        if not readable(graph) and not (waits and pairs > block_pairs(graph.device, pairs)):
            return None
        if bool((graph.diff() < 0).any()):
            self.order = graph.argsort(stable=True)
            self.graph = graph[self.order]
        return graph.bincount().tolist()

    def _ranges(self, sizes: list[int]) -> list[Block]:
        """Blocks for graphs of these sizes, one after the other; small ones share a block."""
        runs: list[tuple[int, int, bool]] = []  # first node, last node + 1, several graphs?
        for size in sizes:
            end = runs[-1][1] if runs else 0
            if runs and end + size - runs[-1][0] <= TOGETHER:
                runs[-1] = (runs[-1][0], end + size, True)
            else:
                runs.append((end, end + size, False))
        blocks = []
        for begin, end, several in runs:
            count, step = self._steps(end - begin)
            if len(runs) == count == 1:  # a compiled graph would take a number for a constant
                return [Block(slice(None), slice(None), self.graph if several else None)]
            for first in (begin + i * step for i in range(count)):
                last = end if count == 1 else min(first + step, end)
                graph = self.graph if several else None
                blocks.append(Block(slice(first, last), slice(begin, end), graph))
        return blocks

    def _steps(self, width: int) -> tuple[int, int]:
        """How many blocks for so many columns, and the rows of each."""
        pairs = width * width
        most = block_pairs(self.node.device, pairs)
        if pairs <= most:
            return 1, width
        if torch.compiler.is_compiling():
            return COMPILED_BLOCKS, -(-width // COMPILED_BLOCKS)
        step = max(1, most // width)
        return -(-width // step), step

    def blockwise(self, look: Callable[[int, Block], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        """What ``look`` finds for the rows of each block, put together."""
        with torch.no_grad():
            parts = [look(i, block) for i, block in enumerate(self.blocks)]
        return parts[0] if len(parts) == 1 else tuple(map(torch.cat, zip(*parts, strict=True)))


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

    def at(self, nodes: Tensor, values: Tensor) -> Tensor:
        """The products of all rows with ``nodes`` [R, p], whose ``values`` are known."""
        return neighbor_products(self.x[self.pairs.rows], self.x, nodes, values)
