"""bgl: batch graph learning on PyTorch Geometric.

Learn a sparse graph over the samples of a mini-batch, pass messages on it, and train an image
encoder through it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

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

# Imported when they are asked for: the command line is slow to start otherwise.
_HOMES = {
    "Embedder": "bgl.embedding",
    "RefinedGallery": "bgl.refinement",
    "ShardFolder": "bgl.embedding",
    "adapt": "bgl.pipeline",  # needs the extra "train", as "train" does
    "embed": "bgl.embedding",
    "forecast": "bgl.forecasting",
    "gallery_readout": "bgl.refinement",
    "refine": "bgl.refinement",
    "to_batch_graph": "bgl.graph",
    "train": "bgl.pipeline",  # the others need no extra
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
