"""BatchFormer: plain self-attention over the batch."""

from __future__ import annotations

from torch import Tensor

from bgl.layers.bgformer import GraphAttention
from bgl.layers.block import BatchBlock
from bgl.layers.pairs import Graph


class BatchFormerBlock(BatchBlock):
    r"""A pre-norm transformer block whose tokens are the samples of the batch.

    BatchFormer's block, from `"BatchFormer: Learning to Explore Sample Relationships for Robust
    Representation Learning" <https://arxiv.org/abs/2203.01522>`_ (CVPR 2022).

    .. math::
        x' = x + \text{attn}(\text{norm}_1(x)), \qquad x'' = x' + \text{FFN}(\text{norm}_2(x'))

    Every sample attends to all others; labels are not used. The baseline that BGFormer's graphs
    are measured against.

    Args:
        channels: Feature dimension C, a multiple of ``heads``.
        heads: Number of attention heads.
        ffn_ratio: Hidden width of the FFN relative to ``channels``.
        norm: ``"layer"`` or ``"graph"`` (PyG's GraphNorm).

    Shapes:
        - ``x`` [N, C]; ``y`` is accepted and ignored; ``batch`` [N] or None
        - output [N, C]; with ``return_graph`` also a list with the full graph
          (``edge_weight`` [E, H])

    Raises:
        ValueError: If an argument has the wrong type, rank, shape or range.

    Example:
        >>> import torch
        >>> BatchFormerBlock(16, heads=4)(torch.randn(6, 16)).shape
        torch.Size([6, 16])
    """

    def __init__(
        self, channels: int, heads: int = 8, ffn_ratio: float = 4.0, norm: str = "layer"
    ) -> None:
        super().__init__(channels, ffn_ratio, norm)
        self.attn = GraphAttention(channels, heads)

    def mix(
        self, x: Tensor, y: Tensor | None, batch: Tensor | None, return_graph: bool
    ) -> tuple[Tensor, list[Graph]]:
        return self.attn(x, batch=batch), [self.attn.edges(x, batch=batch)] if return_graph else []
