"""From files to embeddings; files that cannot be decoded are left out and reported."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from bgl._checks import check_finite, check_int
from bgl.images import IMAGE_SUFFIXES, BrokenImageError
from bgl.images.reading import read_batches
from bgl.models import Encoder, embed_batches


def find_images(places: Iterable[str | Path]) -> list[Path]:
    """The image files among files and in folders, as absolute paths, each once.

    Folders are searched to the bottom, in alphabetical order, for files that end like an image;
    names that begin with a dot are left alone. Files are taken whatever they end in.

    Raises:
        FileNotFoundError: If a place does not exist.
        ValueError: If a folder holds no image, or a single path is not in a list.

    Example:
        >>> find_images(["no/such/file.jpg"])
        Traceback (most recent call last):
        FileNotFoundError: Expected argument `images` to exist, but found none: no/such/file.jpg
    """
    if isinstance(places, (str, Path)):
        raise ValueError(f"Expected argument `images` to be paths in a list, got {places!r}")
    found: dict[Path, None] = {}
    for place in map(Path, places):
        if place.is_dir():
            files = [
                file
                for file in sorted(place.rglob("*"))
                if file.suffix.lower() in IMAGE_SUFFIXES
                and not any(part.startswith(".") for part in file.relative_to(place).parts)
            ]
            if not files:
                raise ValueError(f"Expected argument `images` to have images in {place}")
            found |= dict.fromkeys(file.absolute() for file in files)
        elif place.exists():
            found[place.absolute()] = None
        else:
            raise FileNotFoundError(f"Expected argument `images` to exist, but found none: {place}")
    return list(found)


def embed_files(
    encoder: Encoder,
    paths: Sequence[Path],
    output: str,
    batch_size: int = 64,
    workers: int | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[Tensor, list[Path], list[BrokenImageError]]:
    """Embed image files, a batch in memory at a time.

    Args:
        encoder: The model.
        paths: The files.
        output: "head" or "backbone".
        batch_size: Images at a time.
        workers: Threads that decode; default: one per core.
        progress: Called after each batch with the number of files done and of all files.

    Returns:
        Embeddings [N, D] in float32, the N files that could be read, and an error for each of
        the others.

    Raises:
        ValueError: If no file can be read (the first error is named), or the model gives values
            that are not finite.
    """
    check_int(batch_size, "batch_size", 1)
    parts: list[Tensor] = []
    kept: list[Path] = []
    broken: list[BrokenImageError] = []
    done = 0
    threads = workers or os.cpu_count() or 1
    for batch in read_batches(paths, encoder.transform, batch_size, threads):
        images = []
        for path, image in zip(paths[done : done + len(batch)], batch, strict=True):
            if isinstance(image, BrokenImageError):
                broken.append(image)
            else:
                kept.append(path)
                images.append(image)
        if images:
            stacked = [torch.stack(images)]
            parts.append(embed_batches(encoder.model, stacked, encoder.device, (output,))[output])
        done += len(batch)
        progress(done, len(paths))
    if not parts:
        first = f"; the first: {broken[0]}" if broken else ""
        raise ValueError(
            f"Expected argument `images` to have images that can be read, but none of "
            f"{len(paths)} can{first}"
        )
    x = torch.cat(parts)
    check_finite(x, "the embeddings")
    return x, kept, broken
