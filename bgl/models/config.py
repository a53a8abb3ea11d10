"""The description of a model from which it can be built again, as a typed record."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from bgl._checks import check_choice, check_int, check_real
from bgl._registry import Registry
from bgl.hyperbolic import HyperbolicDistance
from bgl.layers import BatchFormerBlock, BGFormerBlock, DyBGRBlock, RandomGraphBlock
from bgl.models.batch_graph_model import BatchGraphModel, make_head
from bgl.readout import LinearReadout

# Constructors called with the number of channels and the block's own options.
BLOCKS: Registry[Callable[..., nn.Module]] = Registry(
    "block",
    1,
    {
        "dybgr": DyBGRBlock,
        "bgformer": BGFormerBlock,
        "batchformer": BatchFormerBlock,
        "random": RandomGraphBlock,
    },
    grouped=True,
)

# What a model can give for an image: its encoder's output, the head's, the readout of the former.
EMBEDDINGS = ("backbone", "head", "readout")

# How a backbone makes one vector of its last feature map; "default": as it was trained.
POOLS = ("default", "avg", "max", "avgmax")

# Far above any use; a file with more is damaged, and would ask for all memory there is.
LIMITS = {"image_size": 4096, "resize": 8192, "head_dim": 65_536, "readout_dim": 65_536}


def check_at_most(value: int, name: str) -> None:
    """Raise if a size is above its entry in ``LIMITS``."""
    if value > LIMITS[name]:
        raise ValueError(f"Expected argument `{name}` to be at most {LIMITS[name]}, got {value}")


@dataclass(frozen=True)
class BlockConfig:
    """Describe one block of a model: a name in ``BLOCKS`` and its constructor's options.

    Raises:
        ValueError: If the name is not known, or the constructor has no such option.
    """

    name: str
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        BLOCKS.resolve(self.name, self.options)


@dataclass(frozen=True)
class ModelConfig:
    """Describe a model: everything that its weights do not tell.

    Args:
        backbone: A name that :func:`bgl.models.create_backbone` knows.
        image_size: Side of the input images in pixels.
        mean: What is subtracted from each channel, for values in [0, 1].
        std: What each channel is then divided by.
        head_dim: Dimension D of the embedding.
        blocks: The blocks in their order.
        curvature: Curvature c of the Poincaré ball; None: a Euclidean head.
        clip_radius: Features are clipped to this norm before the ball, or None.
        resize: Shorter side of an image before the centre crop; see
            :func:`bgl.images.eval_transform`.
        embedding: Which embedding of an image to use unless another is asked for: "backbone",
            "head" or "readout".
        readout_dim: Dimension of the readout of the backbone's output; None: there is no readout.
        head_norm: Whether a LayerNorm comes before the head.
        pool: How the backbone pools; see :func:`bgl.models.create_backbone`.

    Raises:
        ValueError: If a value is out of its range, or a block is not known.

    Example:
        >>> config = ModelConfig("resnet18", 224, (0.5,) * 3, (0.5,) * 3, 64, curvature=0.1)
        >>> config.distance
        HyperbolicDistance(c=0.1)
    """

    backbone: str
    image_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    head_dim: int
    blocks: tuple[BlockConfig, ...] = ()
    curvature: float | None = None
    clip_radius: float | None = 2.3
    resize: int | None = None
    embedding: str = "head"  # of models that were saved without it
    readout_dim: int | None = None
    head_norm: bool = False
    pool: str = "default"

    def __post_init__(self) -> None:
        check_int(self.image_size, "image_size", 1)
        check_int(self.head_dim, "head_dim", 1)
        if self.resize is not None:
            check_int(self.resize, "resize", self.image_size)
        if self.readout_dim is not None:
            check_int(self.readout_dim, "readout_dim", 1)
        check_choice(self.embedding, "embedding", self.embeddings)
        check_choice(self.pool, "pool", POOLS)
        if not isinstance(self.head_norm, bool):
            raise ValueError(
                f"Expected argument `head_norm` to be True or False, but got {self.head_norm!r:.40}"
            )
        for name in LIMITS:
            check_at_most(getattr(self, name) or 0, name)
        for name in ("curvature", "clip_radius"):
            if getattr(self, name) is not None:
                check_real(getattr(self, name), name, 0.0, exclusive=True)

    @property
    def embeddings(self) -> tuple[str, ...]:
        """The embeddings that the model has."""
        return EMBEDDINGS[: 2 if self.readout_dim is None else 3]

    @property
    def distance(self) -> Any:
        """The distance of the embedding that is used by default."""
        return self.distance_of(self.embedding)

    def distance_of(self, embedding: str) -> Any:
        """Return the distance of an embedding, as :func:`bgl.metrics.retrieval_metrics` takes it.

        All are compared by cosine but a head's that maps onto the Poincaré ball.
        """
        if embedding != "head" or self.curvature is None:
            return "cosine"
        return HyperbolicDistance(self.curvature)


def assemble_model(backbone: nn.Module, channels: int, config: ModelConfig) -> BatchGraphModel:
    """Build the model that ``config`` describes around a backbone with ``channels`` features.

    Blocks and head have fresh weights, and a readout is zero. The memory layout is the one that
    convolutions are fastest in.
    """
    blocks = [BLOCKS[block.name](channels, **block.options) for block in config.blocks]
    geometry = config.curvature, config.clip_radius
    head = make_head(channels, config.head_dim, *geometry, norm=config.head_norm)
    readout = None
    if config.readout_dim is not None:
        readout = LinearReadout(torch.zeros(channels), torch.zeros(config.readout_dim, channels))
    model = BatchGraphModel(backbone, blocks, head, readout)
    return model.to(memory_format=torch.channels_last)
