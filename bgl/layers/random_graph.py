"""A control: the DyBGR block on a graph that was not learned."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bgl._checks import check_index_vectors, check_int, check_matrix
from bgl.layers.batch_graph_conv import BatchGraphConv
from bgl.layers.block import BatchBlock
from bgl.layers.pairs import Graph, Neighbors


class RandomGraph(nn.Module):
    r"""k neighbours per sample, drawn anew in every call, each of weight 1/k.

    What a learned graph gains over this one, it gains by its choice of edges: everything else
    (mixing, feed-forward network, a second branch of the loss) is the same. Each sample draws
    without repetition from the others of its graph, all of them where there are fewer than k.

    Args:
        k: Number of neighbours, ≥ 1.

    Shapes:
        - ``x`` [N, C] features, of which only the number counts; ``batch`` [N] graph of each
          sample or None
        - output: ``edge_index`` [2, E] (source j, target i) and ``edge_weight`` [E]

    Raises:
        ValueError: If an argument has the wrong type, rank, shape or range.

    Example:
        >>> edge_index, edge_weight = RandomGraph(k=2)(torch.zeros(5, 3))
        >>> edge_index.shape, edge_weight[:2]
        (torch.Size([2, 10]), tensor([0.5000, 0.5000]))
    """

    learns_from = ("x", "batch")

    def __init__(self, k: int = 15) -> None:
        super().__init__()
        self.k = check_int(k, "k", 1)

    def forward(self, x: Tensor, *, batch: Tensor | None = None) -> Graph:
        """Draw a graph."""
        return self.neighbors(x, batch).edges()

    def neighbors(self, x: Tensor, batch: Tensor | None = None) -> Neighbors:
        """The graph as a fixed number of neighbours per sample."""
        check_matrix(x)
        check_index_vectors(x.size(0), batch=batch)
        n = x.size(0)
        node = torch.arange(n, device=x.device)[:, None]
        priority = torch.rand(n, n, device=x.device).masked_fill(node == node.t(), -1.0)
        if batch is not None:
            priority = priority.masked_fill(batch[:, None] != batch[None, :], -1.0)
        drawn = priority.topk(max(0, min(self.k, n - 1)), dim=1)
        mask = drawn.values >= 0
        ones = mask.to(torch.promote_types(x.dtype, torch.float32))
        weight = ones / ones.sum(1, keepdim=True).clamp(min=1)
        return Neighbors(torch.where(mask, drawn.indices, node), weight.to(x.dtype), mask)

    def extra_repr(self) -> str:
        return f"k={self.k}"


class RandomGraphBlock(BatchBlock):
    r"""The block of :class:`DyBGRBlock` with random neighbours: the control of its graph.

    .. math::
        x' = x + \epsilon \tilde A h + (1 - \epsilon) h, \quad h = \text{norm}_1(x), \qquad
        x'' = x' + \text{FFN}(\text{norm}_2(x'))

    with :math:`\tilde A` from :class:`RandomGraph`, drawn anew in every call.

    Args:
        channels: Feature dimension C.
        k: Number of neighbours.
        epsilon: Share ε of the neighbours in the mix, in [0, 1].
        ffn_ratio: Hidden width of the FFN relative to ``channels``.
        norm: ``"layer"`` or ``"graph"``.

    Shapes:
        - ``x`` [N, C]; ``y`` [N] or None (not used); ``batch`` [N] or None
        - output [N, C]; with ``return_graph`` also a list with the graph

    Raises:
        ValueError: If an argument has the wrong type, rank, shape or range.

    Example:
        >>> RandomGraphBlock(16, k=3)(torch.randn(10, 16)).shape
        torch.Size([10, 16])
    """

    def __init__(
        self,
        channels: int,
        k: int = 15,
        epsilon: float = 0.5,
        ffn_ratio: float = 1.0,
        norm: str = "layer",
    ) -> None:
        super().__init__(channels, ffn_ratio, norm)
        self.graph = RandomGraph(k)
        self.conv = BatchGraphConv(epsilon)

    def mix(
        self, x: Tensor, y: Tensor | None, batch: Tensor | None, return_graph: bool
    ) -> tuple[Tensor, list[Graph]]:
        neighbors = self.graph.neighbors(x, batch)
        graphs = [neighbors.edges()] if return_graph else []
        return self.conv.along(x, neighbors), graphs
