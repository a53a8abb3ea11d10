"""Embed batches of columns, as Ray Data passes them."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bgl.images.reading import BrokenImageError
from bgl.models.encoder import Encoder, Images
from bgl.models.storage import load

COLUMNS = ("image", "bytes", "path")  # the first of these that a batch has is embedded


class Embedder:
    """Embed batches of rows, for ``ray.data.Dataset.map_batches`` or anything like it.

    Every actor of Ray makes one, which holds the model::

        rows.map_batches(Embedder, fn_constructor_args=["runs/x"], concurrency=2, batch_size=64)

    Args:
        run: The folder of a model, or its name on the Hugging Face hub (:func:`bgl.models.load`).
        output: Which of the model's embeddings, as :meth:`bgl.models.Encoder.embed` takes it.
        batch_size: Images at a time.
        workers: Processes that load the images; 0: the actor does.
        device: Where to compute; "auto": on a GPU if the actor was given one.
    """

    def __init__(
        self,
        run: str | Path,
        output: str = "default",
        batch_size: int = 64,
        workers: int = 0,
        device: str = "auto",
    ) -> None:
        self.encoder = load(run, device)
        self.output = self.encoder.config.embedding if output == "default" else output
        self.batch_size = batch_size
        self.workers = workers

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Add the column "embedding" [n, D], in float32.

        Rows whose image cannot be read are left out, with a warning that names the first.

        Args:
            batch: Columns by name, with "image" (uint8 arrays [H, W, 3]), "bytes" (of image files)
                or "path" among them.

        Raises:
            ValueError: If it has none of these.
        """
        column = next((name for name in COLUMNS if name in batch), None)
        if column is None:
            raise ValueError(
                f"Expected argument `batch` to have one of the columns {COLUMNS}, but got "
                f"{tuple(batch)}: rename the column of the images"
            )
        images = list(batch[column])
        x, broken = embed_readable(self.encoder, images, self.output, self.batch_size, self.workers)
        if broken:
            first = broken[min(broken)]
            warnings.warn(f"{len(broken)} images are left out; the first: {first}", stacklevel=2)
            kept = [i for i in range(len(images)) if i not in broken]
            batch = {name: values[kept] for name, values in batch.items()}
        return {**batch, "embedding": x.numpy()}


def embed_readable(
    encoder: Encoder,
    images: Images,
    output: str,
    batch_size: int,
    workers: int,
    on_batch: Callable[[int], None] = lambda _: None,
) -> tuple[Tensor, dict[int, Any]]:
    """Embed the images that can be read.

    Returns:
        Their embeddings [n, D], in float32, and the errors of the others by number.
    """
    broken: dict[int, BrokenImageError] = {}
    try:
        x = encoder.embed(images, batch_size, output, workers, on_batch, broken.__setitem__)
    except ValueError:
        if len(broken) < len(images):
            raise
        x = torch.empty(0, width(encoder, output))
    return x, broken


def width(encoder: Encoder, output: str) -> int:
    """Return the dimension of a model's embedding."""
    side = encoder.config.image_size
    return encoder.embed(torch.zeros(1, 3, side, side, dtype=torch.uint8), output=output).size(1)
