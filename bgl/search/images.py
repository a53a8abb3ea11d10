"""From files to embeddings; files that cannot be decoded are left out and reported."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from torch import Tensor

from bgl._checks import check_finite
from bgl.images import IMAGE_SUFFIXES, BrokenImageError
from bgl.models import Encoder


def find_images(places: Iterable[str | Path]) -> list[Path]:
    """Find the image files among files and in folders, as absolute paths, each once.

    Folders are searched to the bottom, in alphabetical order, for files that end like an image;
    names that begin with a dot are left alone. Files are taken whatever they end in.

    Raises:
        FileNotFoundError: If a place does not exist.
        ValueError: If a folder holds no image, or a single path is not in a list.

    Example:
        >>> find_images(["no/such/file.jpg"])
        Traceback (most recent call last):
        FileNotFoundError: Expected argument `images` to be files and folders, but there is no
        no/such/file.jpg
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
                raise ValueError(
                    f"Expected argument `images` to be folders with images, but {place} has no "
                    f"file of the kinds {' '.join(sorted(IMAGE_SUFFIXES))}"
                )
            found |= dict.fromkeys(file.absolute() for file in files)
        elif place.exists():
            found[place.absolute()] = None
        else:
            raise FileNotFoundError(
                f"Expected argument `images` to be files and folders, but there is no {place}"
            )
    return list(found)


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
