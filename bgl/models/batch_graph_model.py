"""Encoder, batch-graph blocks and one shared head."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch_geometric.data import Data

from bgl._checks import check_index_vectors, check_int, check_matrix
from bgl.hyperbolic import ToPoincareBall
from bgl.readout import LinearReadout


@dataclass
class BatchGraphOutput:
    """What :class:`BatchGraphModel` returns; the context is there in training only, the readout
    in evaluation only."""

    embeddings: Tensor  # [N, D] head output of each image by itself
    features: Tensor  # [N, C] backbone output
    context_embeddings: Tensor | None = None  # [N, D] head output of the contextual features
    context_features: Tensor | None = None  # [N, C] features after the blocks
    graphs: list[Data] = field(default_factory=list)  # by block and iteration, on request
    readout: Tensor | None = None  # [N, R] readout of the features, where the model has one

    @property
    def graph(self) -> Data | None:
        """The last graph that was learned, if graphs were asked for."""
        return self.graphs[-1] if self.graphs else None


class BatchGraphModel(nn.Module):
    r"""An encoder that learns through the graph of its batch and works without it.

    In training, with features :math:`x = \text{backbone}(\text{images})` and contextual features
    :math:`g = \text{blocks}(x, y)`, the same head embeds both: :math:`\text{head}(x)` and
    :math:`\text{head}(g)`. In evaluation the blocks are left out: every image is embedded alone,
    and its result does not depend on what else is in the batch.

    Source: the head switch of Wang et al., IJCV 2024.

    Args:
        backbone: Any module from a batch of N samples to features [N, C].
        blocks: Modules called as ``block(x, y=labels)``, with ``return_graph=True`` where the
            graph is asked for, and applied in turn; may be empty.
        head: Features [N, C] -> embeddings [N, D].
        readout: A second map of the features, fitted after training; None: there is none.

    Shapes:
        - ``images`` whatever ``backbone`` takes, for instance [N, 3, H, W]; ``labels`` [N]
          integers or None
        - output: :class:`BatchGraphOutput`; with ``return_graph`` (training only) its ``graphs``
          hold one PyG ``Data`` per block and iteration: ``x`` (the features that entered the
          block), ``edge_index``, ``edge_weight``, ``y``, ``block``, ``iteration``

    Raises:
        ValueError: If an argument has the wrong type, rank or length.

    Example:
        >>> from bgl.layers import DyBGRBlock
        >>> backbone = nn.Sequential(nn.Flatten(), nn.Linear(12, 8))
        >>> model = BatchGraphModel(backbone, [DyBGRBlock(8, k=2)], make_head(8, 4))
        >>> output = model(torch.randn(6, 3, 2, 2), torch.arange(6) // 2, return_graph=True)
        >>> output.context_embeddings.shape, output.graph.edge_index.shape
        (torch.Size([6, 4]), torch.Size([2, 12]))
        >>> model.eval()(torch.randn(6, 3, 2, 2)).context_embeddings is None
        True
    """

    def __init__(
        self,
        backbone: nn.Module,
        blocks: Iterable[nn.Module],
        head: nn.Module,
        readout: LinearReadout | None = None,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.blocks = nn.ModuleList(blocks)
        self.head = head
        self.readout = readout
        self._chunk: int | None = None

    def checkpoint_activations(self, images: int = 64) -> None:
        """Encode a few images at a time in training, and once more on the way back.

        Nothing but the features is stored of the forward pass, and the backward pass holds the
        activations of ``images`` images at once: graph and loss see the whole batch however
        large it is (as in gradient caching). The gradients are the same, for one more forward
        pass of the encoder. Batch normalisation must be frozen: its running statistics would
        follow every batch twice.

        Raises:
            ValueError: If ``images`` is no integer ≥ 1.
        """
        self._chunk = check_int(images, "images", 1)

    def forward(
        self, images: Tensor, labels: Tensor | None = None, return_graph: bool = False
    ) -> BatchGraphOutput:
        """Embed a batch, in training also through the graph of its samples."""
        return self.from_features(self.encode(images), labels, return_graph)

    def encode(self, images: Tensor) -> Tensor:
        """Encode a batch, each sample by itself, to features [N, C]: the first half of a call."""
        if self._chunk is not None and self.training:
            parts = images.split(self._chunk)
            return torch.cat([checkpoint(self.backbone, p, use_reentrant=False) for p in parts])
        features = self.backbone(images)
        check_matrix(features, "backbone(images)")
        return features

    def from_features(
        self,
        features: Tensor,
        labels: Tensor | None = None,
        return_graph: bool = False,
        remembered: tuple[Tensor, Tensor] | None = None,
    ) -> BatchGraphOutput:
        """Run the second half of a call, blocks and head, from what :meth:`encode` gave.

        Several processes that train together encode a share of the batch each, and call this
        with the features of all of them. In training, ``remembered`` features and labels of a
        :class:`bgl.layers.FeatureMemory` are further nodes of the graph.
        """
        check_index_vectors(features.size(0), labels=labels)
        if not self.training:
            readout = None if self.readout is None else self.readout(features)
            return BatchGraphOutput(self.head(features), features, readout=readout)
        if not self.blocks:
            return BatchGraphOutput(self.head(features), features)
        nodes, node_labels = features, labels
        if remembered is not None and labels is not None:
            nodes = torch.cat([features, remembered[0]])
            node_labels = torch.cat([labels, remembered[1]])
        context, graphs = self.contextualize(nodes, node_labels, return_graph)
        context = context[: len(features)]
        plain, contextual = self.head(torch.cat([features, context])).chunk(2)
        return BatchGraphOutput(plain, features, contextual, context, graphs)

    def contextualize(
        self, features: Tensor, labels: Tensor | None = None, return_graph: bool = False
    ) -> tuple[Tensor, list[Data]]:
        """Pass features [N, C] through the blocks.

        Returns:
            The contextual features [N, C] and, with ``return_graph``, the graph of every block
            and iteration (see the class).
        """
        context = features
        graphs: list[Data] = []
        for number, block in enumerate(self.blocks):
            if not return_graph:
                context = block(context, y=labels)
                continue
            nodes = context
            context, learned = block(nodes, y=labels, return_graph=True)
            graphs += [
                Data(nodes, edges, edge_weight=weight, y=labels, block=number, iteration=i)
                for i, (edges, weight) in enumerate(learned)
            ]
        return context, graphs


def make_head(
    channels: int,
    dim: int,
    curvature: float | None = None,
    clip_radius: float | None = 2.3,
    norm: bool = False,
) -> nn.Sequential:
    """Make the embedding head: with ``norm`` a LayerNorm, a linear map (orthogonal at the start),
    then, with a ``curvature``, the map onto the Poincaré ball.

    Source: Ermolov et al., *Hyperbolic Vision Transformers*, CVPR 2022.

    Example:
        >>> make_head(8, 4)(torch.zeros(2, 8)).shape
        torch.Size([2, 4])
    """
    linear = nn.Linear(check_int(channels, "channels", 1), check_int(dim, "dim", 1))
    nn.init.orthogonal_(linear.weight)
    nn.init.zeros_(linear.bias)
    parts: list[nn.Module] = [nn.LayerNorm(channels)] if norm else []
    parts.append(linear)
    if curvature is not None:
        parts.append(ToPoincareBall(curvature, clip_radius))
    return nn.Sequential(*parts)
