"""BGFormer: attention over the batch, constrained by a visual and a label graph."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bgl._checks import check_choice, check_int, check_real
from bgl.layers.attention_graph import AttentionGraph
from bgl.layers.block import BatchBlock
from bgl.layers.groups import group_numbers
from bgl.layers.label_graph import LabelGraph
from bgl.layers.pairs import Graph


class GraphAttention(nn.Module):
    r"""Multi-head self-attention over the samples of a batch along a graph.

    .. math::
        \text{proj}\Big(\big\Vert_h \sum_{j \in N_i^h} a_{ij}^h v_j^h\Big)

    The same as :class:`AttentionGraph` followed by :class:`BatchGraphConv` with ``epsilon=1.0``,
    with the graph kept as a mask so that torch's fused attention does the work.

    Args:
        channels: Feature dimension C, a multiple of ``heads``.
        heads: Number of heads.
        k: Neighbours per sample and head; None: all.
    """

    def __init__(self, channels: int, heads: int = 8, k: int | None = None) -> None:
        super().__init__()
        self.heads = check_int(heads, "heads", 1)
        if channels % heads:
            raise ValueError(
                f"Expected argument `channels` to be a multiple of `heads` ({heads}), "
                f"got {channels}"
            )
        self.graph = AttentionGraph(k)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)

    def forward(self, x: Tensor, *, batch: Tensor | None = None) -> Tensor:
        """Attend within the graphs of a batch."""
        query, key, value = self._heads(x)
        mask = self.graph.mask(query, key, batch)
        out = F.scaled_dot_product_attention(
            query.transpose(0, 1)[None],
            key.transpose(0, 1)[None],
            value.transpose(0, 1)[None],
            attn_mask=mask if mask is None else mask.expand(1, self.heads, -1, -1),
        )
        return self.proj(out[0].transpose(0, 1).reshape(x.shape))

    def edges(self, x: Tensor, *, batch: Tensor | None = None) -> Graph:
        """The graph of :meth:`forward` as ``edge_index`` [2, E] and ``edge_weight`` [E, H]."""
        query, key, _ = self._heads(x)
        return self.graph(query, key, batch=batch)

    def _heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        qkv = self.qkv(x).view(x.size(0), 3, self.heads, x.size(1) // self.heads)
        query, key, value = qkv.unbind(1)
        return query, key, value


class ClassMean(nn.Module):
    r"""Averages values along the symmetric-normalised label graph (see :class:`LabelGraph`).

    .. math::
        \text{proj}\Big(\frac{1}{n_i + 1} \big(v_i + \sum_{j : y_j = y_i} v_j\big)\Big),
        \qquad v = \text{value}(x)

    Computed by sums per class, whose numbers are below N; no edge list is built.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.value = nn.Linear(channels, channels)
        self.proj = nn.Linear(channels, channels)

    def forward(self, x: Tensor, *, batch: Tensor) -> Tensor:
        """Average over the class."""
        value = self.value(x)
        sums = torch.zeros_like(value).index_add(0, batch, value)
        ones = value.new_ones(value.size(0), 1)
        sizes = torch.zeros_like(ones).index_add(0, batch, ones)
        return self.proj((value + sums[batch]) / (sizes[batch] + 1))

    def edges(self, x: Tensor, *, batch: Tensor) -> Graph:
        """The label graph as ``edge_index`` [2, E] and ``edge_weight`` [E]."""
        return LabelGraph()(batch)


class BGFormerBlock(BatchBlock):
    r"""A transformer block over the batch with a visual and a semantic branch.

    BGFormer's block, from `"Rethinking Batch Sample Relationships for Data Representation: A
    Batch-Graph Transformer based Approach" <https://arxiv.org/abs/2211.10622>`_.

    .. math::
        h = \text{norm}_1(x), \qquad
        x' = x + \lambda\, \text{visual}(h) + (1 - \lambda)\, \text{semantic}(h, y), \qquad
        x'' = x' + \text{FFN}(\text{norm}_2(x'))

    *Visual:* attention kept to the k strongest scores per sample and head. *Semantic:*
    ``"graph"`` averages values along the symmetric-normalised label graph (as released);
    ``"attention"`` is attention among the samples of a class with its own queries, keys and
    values (as the paper's text has it). Without labels the semantic branch is left out and the
    visual branch carries the full weight (λ = 1).

    Args:
        channels: Feature dimension C, a multiple of ``heads``.
        heads: Number of attention heads.
        k: Neighbours per sample and head in the visual graph.
        lam: Weight λ of the visual branch, in [0, 1].
        ffn_ratio: Hidden width of the FFN relative to ``channels``.
        norm: ``"layer"`` (as released) or ``"graph"`` (PyG's GraphNorm, the paper's graph
            normalization).
        semantic: ``"graph"`` or ``"attention"``.

    Shapes:
        - ``x`` [N, C]; ``y`` [N] or None; ``batch`` [N] or None
        - output [N, C]; with ``return_graph`` also a list with the visual graph
          (``edge_weight`` [E, H]) and, with labels, the semantic one ([E'] for "graph",
          [E', H] for "attention")

    Raises:
        ValueError: If an argument has the wrong type, rank, shape or range.

    Example:
        >>> block = BGFormerBlock(16, heads=4, k=3)
        >>> out, graphs = block(torch.randn(6, 16), y=torch.arange(6) // 2, return_graph=True)
        >>> out.shape, len(graphs)
        (torch.Size([6, 16]), 2)
    """

    def __init__(
        self,
        channels: int,
        heads: int = 8,
        k: int = 15,
        lam: float = 0.5,
        ffn_ratio: float = 4.0,
        norm: str = "layer",
        semantic: str = "graph",
    ) -> None:
        super().__init__(channels, ffn_ratio, norm)
        check_choice(semantic, "semantic", ("graph", "attention"))
        self.lam = check_real(lam, "lam", 0.0, 1.0)
        self.visual = GraphAttention(channels, heads, check_int(k, "k", 1))
        self.semantic = (
            ClassMean(channels) if semantic == "graph" else GraphAttention(channels, heads)
        )

    def mix(
        self, x: Tensor, y: Tensor | None, batch: Tensor | None, return_graph: bool
    ) -> tuple[Tensor, list[Graph]]:
        graphs = [self.visual.edges(x, batch=batch)] if return_graph else []
        visual = self.visual(x, batch=batch)
        if y is None:
            return visual, graphs
        classes = group_numbers(y) if batch is None else group_numbers(y, batch)
        if return_graph:
            graphs.append(self.semantic.edges(x, batch=classes))
        semantic = self.semantic(x, batch=classes)
        return self.lam * visual + (1 - self.lam) * semantic, graphs
