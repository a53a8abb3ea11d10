"""bgl: batch graph learning on PyTorch Geometric.

Learn a sparse graph over the samples of a mini-batch, pass messages on it, and train an image
encoder through it.
"""

from typing import Any

from bgl.graph import to_batch_graph
from bgl.refinement import RefinedGallery, refine

__version__ = "0.1.0"
__all__ = ["RefinedGallery", "refine", "to_batch_graph", "train"]


def __getattr__(name: str) -> Any:
    if name == "train":  # needs the extra "train", the rest of this module does not
        from bgl.pipeline import train

        return train
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
