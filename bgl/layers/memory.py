"""The latest batches as further nodes of a batch graph."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from bgl._checks import check_index_vector, check_int, check_matrix


class FeatureMemory(nn.Module):
    r"""Remember the features of the latest batches, as further nodes of the next batch's graph.

    As in the memory of `"Cross-Batch Memory for Embedding Learning"
    <https://arxiv.org/abs/1912.06798>`_ (CVPR 2020) they are constants: gradients reach the
    samples of the batch alone, through the graph of all. It fits any block and any loss,

    .. code-block:: python

        nodes, labels = memory(x, y)  # the batch, then what is remembered
        context = block(nodes, y=labels)[: len(x)]

    Nothing is remembered before the memory is full, so that graphs have two sizes only. In
    evaluation it neither adds nor takes anything. Its content is a part of ``state_dict``.

    Args:
        size: Number of samples that are remembered, ≥ 1; the latest come first.

    Shapes:
        - ``x`` [N, C]; ``y`` [N] integer labels
        - output: [N, C] and [N], or [N + size, C] and [N + size]

    Raises:
        ValueError: If an argument has the wrong type, rank, shape or range.

    Example:
        >>> memory = FeatureMemory(4)
        >>> x, y = torch.randn(3, 8), torch.tensor([0, 0, 1])
        >>> [len(memory(x, y)[0]) for _ in range(3)]
        [3, 3, 7]
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = check_int(size, "size", 1)
        self.content: tuple[Tensor, Tensor] | None = None

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return the batch with what is remembered of earlier ones, and remember it."""
        nodes, labels = x, y
        if (remembered := self.recall(x)) is not None:
            nodes, labels = torch.cat([x, remembered[0]]), torch.cat([y, remembered[1]])
        self.remember(x, y)
        return nodes, labels

    def recall(self, x: Tensor) -> tuple[Tensor, Tensor] | None:
        """Return features [size, C] of the type of ``x``, and labels; None until it is full."""
        if self.content is None or len(self.content[1]) < self.size or not self.training:
            return None
        return self.content[0].to(x), self.content[1].to(x.device)

    def remember(self, x: Tensor, y: Tensor) -> None:
        """Put a batch in front, and forget the oldest samples."""
        check_matrix(x)
        check_index_vector(y, x.size(0), "y")
        if not self.training:
            return
        parts = [(x.detach(), y)]
        if self.content is not None:
            parts.append((self.content[0].to(x), self.content[1].to(y)))
        features, labels = (torch.cat(part)[: self.size] for part in zip(*parts, strict=True))
        self.content = features.clone(), labels.clone()

    def get_extra_state(self) -> Any:
        return self.content

    def set_extra_state(self, state: Any) -> None:
        self.content = state

    def extra_repr(self) -> str:
        return f"size={self.size}"
