"""A trained model in use: images in, embeddings out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bgl._checks import check_choice, check_int, describe
from bgl.images import BrokenImageError, eval_transform
from bgl.images.reading import read_batches

_OUTPUTS = {"backbone": "features", "head": "embeddings"}  # fields of BatchGraphOutput


class Encoder:
    """A model with all it takes to embed images: transform, device, distance.

    Every image is embedded by itself; the result does not depend on what else is in the batch.
    :func:`bgl.models.load` makes one from a training's folder.

    Args:
        model: A :class:`bgl.models.BatchGraphModel`; is put into evaluation mode.
        image_size: Side of the model's input in pixels.
        mean: What is subtracted from each channel, for values in [0, 1].
        std: What each channel is then divided by.
        distance: How to compare head embeddings: "cosine" or a
            :class:`bgl.hyperbolic.HyperbolicDistance`. Backbone features go by cosine.
        device: Where to compute.
        resize: Shorter side of an image before the centre crop; see
            :func:`bgl.images.eval_transform`.

    Example:
        >>> from bgl.models import BatchGraphModel, make_head
        >>> backbone = nn.Sequential(nn.Flatten(), nn.Linear(3 * 4 * 4, 8))
        >>> encoder = Encoder(BatchGraphModel(backbone, [], make_head(8, 2)), 4, [0.5] * 3, [1] * 3)
        >>> encoder.embed(torch.zeros(5, 3, 6, 6, dtype=torch.uint8)).shape
        torch.Size([5, 2])
    """

    def __init__(
        self,
        model: nn.Module,
        image_size: int,
        mean: Sequence[float],
        std: Sequence[float],
        distance: Any = "cosine",
        device: str | torch.device = "cpu",
        resize: int | None = None,
    ) -> None:
        self.device = torch.device(device)
        self.model = model.to(self.device).eval()
        self.image_size = image_size
        self.transform = eval_transform(image_size, mean, std, resize)
        self.distance = distance

    def embed(
        self,
        images: Tensor | Sequence[str | Path | Tensor],
        batch_size: int = 64,
        output: str = "head",
        workers: int = 0,
    ) -> Tensor:
        """Embed images of any size.

        Args:
            images: A uint8 tensor [N, 3, H, W], or a sequence of paths and uint8 tensors
                [3, H, W].
            batch_size: Images at a time; the result does not depend on it.
            output: "head" or "backbone".
            workers: Threads that read the images, one at least.

        Returns:
            Embeddings [N, D] (or backbone features [N, C]) in float32 on the CPU.

        Raises:
            ValueError: If there are no images, or one is neither a path nor such a tensor; a
                file that cannot be read is named (:class:`bgl.images.BrokenImageError`).
        """
        check_choice(output, "output", tuple(_OUTPUTS))
        check_int(batch_size, "batch_size", 1)
        threads = max(1, check_int(workers, "workers", 0))
        _check_images(images)
        batches = read_batches(images, self.transform, batch_size, threads)
        return embed_batches(self.model, _whole(batches), self.device, (output,))[output]

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(image_size={self.image_size}, distance={self.distance!r}, "
            f"device={str(self.device)!r})"
        )


@torch.no_grad()
def embed_batches(
    model: nn.Module,
    batches: Iterable[Tensor],
    device: torch.device,
    outputs: Sequence[str] = tuple(_OUTPUTS),
    on_batch: Callable[[int], None] = lambda _: None,
) -> dict[str, Tensor]:
    """Embed batches of transformed images [N, 3, H, W], each image by itself.

    Args:
        model: A :class:`bgl.models.BatchGraphModel` on ``device``; its mode is restored
            afterwards.
        batches: At least one.
        device: Where the model is.
        outputs: "backbone", "head" or both.
        on_batch: Called with the number of images after each batch.

    Returns:
        ``{"backbone": [N, C], "head": [N, D]}`` in float32 on the CPU, in the given order.
    """
    for name in outputs:
        check_choice(name, "outputs", tuple(_OUTPUTS))
    was_training = model.training
    model.eval()
    parts: dict[str, list[Tensor]] = {name: [] for name in outputs}
    for images in batches:
        result = model(images.to(device).contiguous(memory_format=torch.channels_last))
        for name, part in parts.items():
            part.append(getattr(result, _OUTPUTS[name]).float().cpu())
        on_batch(len(images))
    model.train(was_training)
    if not all(parts.values()):
        raise ValueError("Expected argument `batches` to hold at least one batch, but got none")
    return {name: torch.cat(part) for name, part in parts.items()}


def _check_images(images: Tensor | Sequence[str | Path | Tensor]) -> None:
    """Raise unless there are images, each a path or a uint8 tensor [3, H, W]."""
    expected = "Expected argument `images` to be paths or uint8 tensors of shape [3, H, W]"
    if isinstance(images, (str, Path)):
        raise ValueError(f"{expected} in a list, got {images!r}")
    if len(images) == 0:
        raise ValueError(f"{expected}, but got none")
    for i, image in enumerate(images):
        ok = isinstance(image, (str, Path)) or (
            isinstance(image, Tensor)
            and image.dtype == torch.uint8
            and image.dim() == 3
            and image.size(0) == 3
        )
        if not ok:
            raise ValueError(f"{expected}, but got {describe(image)} at index {i}")


def _whole(batches: Iterable[Sequence[Tensor | BrokenImageError]]) -> Iterator[Tensor]:
    """Batches as tensors; the first image that cannot be decoded is raised."""
    for batch in batches:
        images = []
        for image in batch:
            if isinstance(image, BrokenImageError):
                raise image
            images.append(image)
        yield torch.stack(images)
