"""What the blocks of all methods share: pre-norm residual mixing and a feed-forward network."""

from __future__ import annotations

from collections import OrderedDict
from typing import Literal, overload

import torch
from torch import Tensor, nn
from torch_geometric.nn import GraphNorm

from bgl._checks import check_choice, check_index_vectors, check_int, check_matrix, check_real
from bgl.layers.groups import group_numbers
from bgl.layers.pairs import Graph


class Refiner(nn.Module):
    """Base of what refines the features of a batch along graphs, and returns these if asked for."""

    def refine(
        self, x: Tensor, y: Tensor | None, batch: Tensor | None, return_graph: bool
    ) -> tuple[Tensor, list[Graph]]:
        """Refined features [N, C] and, if asked for, the graphs along which they were mixed."""
        raise NotImplementedError

    @overload
    def forward(
        self,
        x: Tensor,
        *,
        y: Tensor | None = ...,
        batch: Tensor | None = ...,
        return_graph: Literal[False] = ...,
    ) -> Tensor: ...

    @overload
    def forward(
        self,
        x: Tensor,
        *,
        y: Tensor | None = ...,
        batch: Tensor | None = ...,
        return_graph: Literal[True],
    ) -> tuple[Tensor, list[Graph]]: ...

    def forward(
        self,
        x: Tensor,
        *,
        y: Tensor | None = None,
        batch: Tensor | None = None,
        return_graph: bool = False,
    ) -> Tensor | tuple[Tensor, list[Graph]]:
        """Refine the features, and return the graphs along which they were mixed if asked for."""
        out, graphs = self.refine(x, y, batch, return_graph)
        return (out, graphs) if return_graph else out


class BatchBlock(Refiner):
    r"""Base of the blocks: :math:`x' = x + \text{mix}(\text{norm}_1(x))`, then
    :math:`x' + \text{FFN}(\text{norm}_2(x'))`.

    Subclasses implement :meth:`mix`, which exchanges information between the samples of a batch.
    Parameter names (``norm1``, ``norm2``, ``mlp.fc1``, ``mlp.fc2``) are those of timm's blocks.
    """

    def __init__(self, channels: int, ffn_ratio: float = 4.0, norm: str = "layer") -> None:
        super().__init__()
        self.channels = check_int(channels, "channels", 1)
        hidden = int(channels * check_real(ffn_ratio, "ffn_ratio", 0.0, 1e3, exclusive=True))
        check_choice(norm, "norm", ("layer", "graph"))
        self.norm1: nn.Module = nn.LayerNorm(channels) if norm == "layer" else GraphNorm(channels)
        self.norm2: nn.Module = nn.LayerNorm(channels) if norm == "layer" else GraphNorm(channels)
        self.mlp = nn.Sequential(
            OrderedDict(
                fc1=nn.Linear(channels, hidden), act=nn.GELU(), fc2=nn.Linear(hidden, channels)
            )
        )

    def mix(
        self, x: Tensor, y: Tensor | None, batch: Tensor | None, return_graph: bool
    ) -> tuple[Tensor, list[Graph]]:
        """Mixed features [N, C] and, if asked for, the graphs along which they were mixed."""
        raise NotImplementedError

    def refine(
        self, x: Tensor, y: Tensor | None, batch: Tensor | None, return_graph: bool
    ) -> tuple[Tensor, list[Graph]]:
        check_matrix(x)
        if x.size(1) != self.channels:
            raise ValueError(
                f"Expected argument `x` to have {self.channels} channels, but got {x.size(1)}"
            )
        wanted = self.norm2.weight.dtype
        if x.dtype != wanted and not torch.is_autocast_enabled(x.device.type):
            raise ValueError(
                f"Expected argument `x` to have the parameters' type {wanted}, but got {x.dtype}"
            )
        check_index_vectors(x.size(0), y=y, batch=batch)
        mixed, graphs = self.mix(self._normalize(self.norm1, x, batch), y, batch, return_graph)
        x = x + mixed
        return x + self.mlp(self._normalize(self.norm2, x, batch)), graphs

    @staticmethod
    def _normalize(norm: nn.Module, x: Tensor, batch: Tensor | None) -> Tensor:
        if isinstance(norm, GraphNorm):
            # numbered below N, the bound that spares it reading the number of graphs
            return norm(x) if batch is None else norm(x, group_numbers(batch), x.size(0))
        return norm(x)
