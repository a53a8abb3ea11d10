"""bgl: batch graph learning on PyTorch Geometric.

Learn a sparse graph over the samples of a mini-batch, pass messages on it, and train an image
encoder through it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bgl._lazy import lazily

if TYPE_CHECKING:
    from bgl.embedding import Embedder, ShardFolder, embed
    from bgl.forecasting import forecast
    from bgl.graph import to_batch_graph
    from bgl.pipeline import adapt, train
    from bgl.refinement import RefinedGallery, gallery_readout, refine

__version__ = "0.1.0"
__all__ = [
    "Embedder",
    "RefinedGallery",
    "ShardFolder",
    "adapt",
    "embed",
    "forecast",
    "gallery_readout",
    "refine",
    "to_batch_graph",
    "train",
]

__getattr__ = lazily(
    __name__,
    {
        "bgl.embedding": ["Embedder", "ShardFolder", "embed"],
        "bgl.forecasting": ["forecast"],
        "bgl.graph": ["to_batch_graph"],
        "bgl.pipeline": ["adapt", "train"],  # these alone need the extra "train"
        "bgl.refinement": ["RefinedGallery", "gallery_readout", "refine"],
    },
)
