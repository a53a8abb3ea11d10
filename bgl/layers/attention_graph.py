"""BGFormer's visual graph: the strongest attention of each sample."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bgl._checks import check_floating, check_index_vectors, check_int
from bgl._precision import at_least_float32, exact_matmul
from bgl.layers.pairs import Graph


class AttentionGraph(nn.Module):
    r"""Keep the k strongest attention scores of every sample and head.

    The visual graph of `"Rethinking Batch Sample Relationships for Data Representation: A
    Batch-Graph Transformer based Approach" <https://arxiv.org/abs/2211.10622>`_.

    .. math::
        s_{ij}^h = \frac{\langle q_i^h, k_j^h \rangle}{\sqrt{d}}, \qquad
        a_{ij}^h = \frac{\exp s_{ij}^h}{\sum_{p \in N_i^h} \exp s_{ip}^h}
        \quad (j \in N_i^h,\ \text{the } k \text{ largest of row } i)

    A sample may be its own neighbour. ``k`` is lowered to N where the batch is smaller. No
    parameters.

    Args:
        k: Neighbours per sample and head, ≥ 1; None keeps all.

    Shapes:
        - ``query``, ``key`` [N, H, d]; ``batch`` [N] or None
        - output: ``edge_index`` [2, E], the union of the heads' edges, sorted by target, and
          ``edge_weight`` [E, H], 0 where a head does not have the edge, at least float32

    Raises:
        ValueError: If an argument has the wrong type, rank, shape or range.

    Example:
        >>> query = torch.randn(6, 2, 4)
        >>> edge_index, edge_weight = AttentionGraph(k=6)(query, query)
        >>> edge_index.shape, edge_weight.shape
        (torch.Size([2, 36]), torch.Size([36, 2]))
    """

    def __init__(self, k: int | None = 15) -> None:
        super().__init__()
        self.k = k if k is None else check_int(k, "k", 1)

    def forward(self, query: Tensor, key: Tensor, *, batch: Tensor | None = None) -> Graph:
        """Learn the graph; ``query`` and ``key`` may be the same."""
        keep = self.mask(query, key, batch)
        with torch.autocast(query.device.type, enabled=False):  # half precision would overflow
            query, key = at_least_float32(query), at_least_float32(key)
            scores = _scores(query, key) * max(1, query.size(-1)) ** -0.5
            if keep is None:
                keep = torch.ones_like(scores, dtype=torch.bool)
            weight = scores.masked_fill(~keep, -torch.inf).softmax(-1)
        target, source = keep.any(0).nonzero(as_tuple=True)
        return torch.stack([source, target]), weight[:, target, source].t()

    @torch.no_grad()
    def mask(self, query: Tensor, key: Tensor, batch: Tensor | None = None) -> Tensor | None:
        """Which pairs [H, N (target), N (source)] a head keeps; None: all of them."""
        _check(query, key, batch)
        n = query.size(0)
        same_graph = None if batch is None else batch[:, None] == batch[None, :]
        # k ≥ N is asked of the whole batch: with several graphs rows only have fewer neighbours
        if self.k is None or self.k >= n:
            return None if same_graph is None else same_graph.expand(query.size(1), n, n)
        with torch.autocast(query.device.type, enabled=False):  # half precision would tie
            scores = _scores(at_least_float32(query), at_least_float32(key))
        if same_graph is not None:
            scores = scores.masked_fill(~same_graph, -torch.inf)
        strongest = scores.topk(self.k, dim=-1).indices
        keep = torch.zeros_like(scores, dtype=torch.bool).scatter(-1, strongest, True)
        return keep if same_graph is None else keep & same_graph

    def extra_repr(self) -> str:
        return f"k={self.k}"


def _scores(query: Tensor, key: Tensor) -> Tensor:
    """⟨q_i, k_j⟩ [H, N, N] of [N, H, d]."""
    return exact_matmul(query.transpose(0, 1), key.permute(1, 2, 0))


def _check(query: Tensor, key: Tensor, batch: Tensor | None) -> None:
    for name, value in (("query", query), ("key", key)):
        check_floating(value, name, "[N, H, d]", (3,))
    if query.shape != key.shape:
        raise ValueError(
            f"Expected arguments `query` and `key` to have the same shape, "
            f"but got {list(query.shape)} and {list(key.shape)}"
        )
    check_index_vectors(query.size(0), batch=batch)
