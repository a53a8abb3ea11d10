"""From files to embeddings; files that cannot be decoded are left out and reported."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from torch import Tensor

from bgl._checks import check_finite
from bgl.images import BrokenImageError
from bgl.models import Encoder


def embed_files(
    encoder: Encoder,
    paths: Sequence[Path],
    output: str,
    batch_size: int = 64,
    workers: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[Tensor, list[Path], list[BrokenImageError]]:
    """Embed image files, a batch in memory at a time.

    Args:
        encoder: The model.
        paths: The files.
        output: As :meth:`bgl.models.Encoder.embed` takes it.
        batch_size: Images at a time.
        workers: Processes that load the images; 0: this process does.
        progress: Called after each batch with the number of files done and of all files.

    Returns:
        Embeddings [N, D] in float32, the N files that could be read, and an error for each of
        the others.

    Raises:
        ValueError: If no file can be read (the first error is named), or the model gives values
            that are not finite.
    """
    broken: dict[int, BrokenImageError] = {}
    done = 0

    def on_batch(images: int) -> None:
        nonlocal done
        done += images
        progress(done, len(paths))

    x = encoder.embed(paths, batch_size, output, workers, on_batch, broken.__setitem__)
    check_finite(x, "the embeddings")
    return x, [path for i, path in enumerate(paths) if i not in broken], list(broken.values())
