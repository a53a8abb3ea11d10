"""DyBGR: graph and features refined in turn, as a layer and as a transformer-like block."""

from __future__ import annotations

from torch import Tensor

from bgl._checks import check_int
from bgl.layers.adaptive_graph import AdaptiveGraph
from bgl.layers.batch_graph_conv import BatchGraphConv
from bgl.layers.block import BatchBlock, Refiner
from bgl.layers.pairs import Graph


class DyBGR(Refiner):
    r"""Learn a batch graph and contextual features in turn, without parameters.

    DyBGR, from `"Learning Dynamic Batch-Graph Representation for Deep
    Representation Learning" <https://doi.org/10.1007/s11263-024-02175-8>`_ (IJCV 2024).

    .. math::
        F^0 = H, \qquad A^t = \text{AdaptiveGraph}(H, y;\ F^{t-1}), \qquad
        F^t = \epsilon A^t H + (1 - \epsilon) H \qquad (t = 1 \dots T)

    Messages always start from the input :math:`H`; only the graph is refined, until graph and
    features agree. ``num_iterations=0`` returns the input.

    Args:
        k: Number of neighbours.
        num_iterations: T, ≥ 0.
        lam: Weight λ of the contextual similarity.
        beta: Weight β of the label correlation.
        epsilon: Share ε of the neighbours in the mix, in [0, 1].
        formulation: ``"released"`` or ``"paper"``, see :class:`AdaptiveGraph`.

    Shapes:
        - ``x`` [N, C]; ``y`` [N] integer labels or None; ``batch`` [N] or None
        - output [N, C]; with ``return_graph`` also a list of T graphs
          ``(edge_index [2, E], edge_weight [E])``

    Raises:
        ValueError: If an argument has the wrong type, rank, shape or range.

    Example:
        >>> import torch
        >>> x = torch.randn(8, 4)
        >>> out, graphs = DyBGR(k=2)(x, y=torch.arange(8) // 2, return_graph=True)
        >>> out.shape, len(graphs), graphs[-1][0].shape
        (torch.Size([8, 4]), 3, torch.Size([2, 16]))
    """

    def __init__(
        self,
        k: int = 15,
        num_iterations: int = 3,
        lam: float = 0.3,
        beta: float = 0.5,
        epsilon: float = 0.5,
        formulation: str = "released",
    ) -> None:
        super().__init__()
        self.num_iterations = check_int(num_iterations, "num_iterations", 0)
        self.learner = AdaptiveGraph(k, lam, beta, formulation)
        self.conv = BatchGraphConv(epsilon)

    def refine(
        self, x: Tensor, y: Tensor | None, batch: Tensor | None, return_graph: bool
    ) -> tuple[Tensor, list[Graph]]:
        problem = self.learner.prepare(x, y=y, batch=batch)
        out, graphs = x, []
        for _ in range(self.num_iterations):
            neighbors = problem.solve(out)
            out = self.conv.along(x, neighbors)
            if return_graph:
                graphs.append(neighbors.edges())
        return out, graphs

    def extra_repr(self) -> str:
        return f"num_iterations={self.num_iterations}"


class DyBGRBlock(BatchBlock):
    r"""A pre-norm block around :class:`DyBGR`.

    From `"Learning Dynamic Batch-Graph Representation for Deep
    Representation Learning" <https://doi.org/10.1007/s11263-024-02175-8>`_ (IJCV 2024).

    .. math::
        x' = x + \text{DyBGR}(\text{norm}_1(x)), \qquad x'' = x' + \text{FFN}(\text{norm}_2(x'))

    with FFN = fc2(GELU(fc1(·))).

    Args:
        channels: Feature dimension C.
        k: Number of neighbours.
        num_iterations: How often graph and features are refined in turn, ≥ 0.
        lam: Weight λ of the contextual similarity, ≥ 0.
        beta: Weight β of the label correlation.
        epsilon: Share ε of the neighbours in the mix, in [0, 1].
        ffn_ratio: Hidden width of the FFN relative to ``channels``.
        norm: ``"layer"`` (LayerNorm, as released) or ``"graph"`` (PyG's GraphNorm).
        formulation: ``"released"`` or ``"paper"``, see :class:`AdaptiveGraph`.

    Shapes:
        - ``x`` [N, C]; ``y`` [N] or None; ``batch`` [N] or None
        - output [N, C]; with ``return_graph`` also the list of T graphs

    Raises:
        ValueError: If an argument has the wrong type, rank, shape or range.

    Example:
        >>> import torch
        >>> block = DyBGRBlock(16, k=3)
        >>> block(torch.randn(10, 16)).shape
        torch.Size([10, 16])
    """

    def __init__(
        self,
        channels: int,
        k: int = 15,
        num_iterations: int = 3,
        lam: float = 0.3,
        beta: float = 0.5,
        epsilon: float = 0.5,
        ffn_ratio: float = 1.0,
        norm: str = "layer",
        formulation: str = "released",
    ) -> None:
        super().__init__(channels, ffn_ratio, norm)
        self.mixer = DyBGR(k, num_iterations, lam, beta, epsilon, formulation)

    def mix(
        self, x: Tensor, y: Tensor | None, batch: Tensor | None, return_graph: bool
    ) -> tuple[Tensor, list[Graph]]:
        return self.mixer.refine(x, y, batch, return_graph)
