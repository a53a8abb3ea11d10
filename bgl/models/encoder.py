"""A trained model in use: images in, embeddings out."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, overload, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from bgl._checks import check_choice, check_device, check_int, describe
from bgl.images import BrokenImageError, eval_transform
from bgl.images.converting import ImageLike, as_image, is_image_like
from bgl.images.loading import ImageLoader, Key
from bgl.images.transforms import Crop
from bgl.models.batch_graph_model import BatchGraphModel
from bgl.models.config import ModelConfig
from bgl.readout import SHRINKAGE, LinearReadout, fit_readout

# fields of BatchGraphOutput
_OUTPUTS = {"backbone": "features", "head": "embeddings", "readout": "readout"}


@runtime_checkable
class ImageSource(Protocol):
    """Images to be read one by one, such as a :class:`bgl.datasets.ImageDataset`."""

    def __len__(self) -> int: ...

    def read(self, index: int, min_side: int | None = None, /) -> Tensor:
        """Return a uint8 tensor [3, H, W], or raise a BrokenImageError.

        A shorter side of ``min_side`` pixels suffices, which allows for faster decoding.
        """


Images = Tensor | Sequence[ImageLike] | ImageSource


class Encoder:
    """A model and everything needed to embed images with it: their preparation and the device.

    Every image is embedded by itself; the result does not depend on what else is in the batch.
    Embeddings are always computed in float32, whatever precision the model is trained in: what a
    run reports of its model is what the stored model gives.
    :func:`bgl.models.load` makes one from the folder of a run.

    Args:
        model: The model; it is moved to the device and put into evaluation mode.
        config: What the model was built from; image size, mean, std and resize are used.
        device: Where to compute; "auto": on a GPU if there is one.

    Example:
        >>> from torch import nn
        >>> from bgl.models import make_head
        >>> backbone = nn.Sequential(nn.Flatten(), nn.Linear(3 * 4 * 4, 8))
        >>> config = ModelConfig("mine", 4, (0.5,) * 3, (1.0,) * 3, head_dim=2)
        >>> encoder = Encoder(BatchGraphModel(backbone, [], make_head(8, 2)), config)
        >>> encoder.embed(torch.zeros(5, 3, 6, 6, dtype=torch.uint8)).shape
        torch.Size([5, 2])
    """

    def __init__(
        self, model: BatchGraphModel, config: ModelConfig, device: str | torch.device = "cpu"
    ) -> None:
        self.device = check_device(device)
        self.model = model.to(self.device).eval()
        self.config = config
        self.transform = eval_transform(config.image_size, config.mean, config.std, config.resize)
        self._copies = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None

    @property
    def distance(self) -> Any:
        """How to compare what :meth:`embed` gives by default; see ``config.distance_of``."""
        return self.config.distance

    def with_readout(self, readout: LinearReadout) -> Encoder:
        """Return an encoder with a readout of the backbone's output, which it uses by default.

        Backbone and head are shared, not copied. To keep it:
        ``save(encoder.model, folder, encoder.config)``.

        Args:
            readout: Fitted on backbone features, by :func:`bgl.readout.fit_readout` or otherwise.

        Example:
            >>> from bgl.models import assemble_model, create_backbone
            >>> backbone, info = create_backbone("test_resnet", weights="none")
            >>> config = ModelConfig("test_resnet", 32, info.mean, info.std, head_dim=4)
            >>> encoder = Encoder(assemble_model(backbone, info.num_features, config), config)
            >>> images = torch.randint(256, (9, 3, 32, 32), dtype=torch.uint8)
            >>> readout = fit_readout(encoder.embed(images, output="backbone"), dim=2)
            >>> encoder.with_readout(readout).embed(images).shape
            torch.Size([9, 2])
        """
        model = BatchGraphModel(
            self.model.backbone, self.model.blocks, self.model.head, copy.deepcopy(readout).float()
        )
        config = dataclasses.replace(
            self.config, embedding="readout", readout_dim=readout.weight.size(0)
        )
        return Encoder(model, config, self.device)

    def with_image_size(self, image_size: int) -> Encoder:
        """Return an encoder that embeds whole images at another size; the weights are shared.

        Models trained on crops, which show things larger, often find more at a larger size
        (`Touvron et al., NeurIPS 2019 <https://arxiv.org/abs/1906.06423>`_). A readout belongs to
        its size and is left out: fit one anew, by :meth:`fit_readout`.

        Args:
            image_size: Side of the square in pixels; an image's shorter side is resized to it.

        Raises:
            ValueError: If it is out of range, or the backbone is built for one size.

        Example:
            >>> from bgl.models import assemble_model, create_backbone
            >>> backbone, info = create_backbone("test_resnet", weights="none")
            >>> config = ModelConfig("test_resnet", 32, info.mean, info.std, head_dim=4)
            >>> encoder = Encoder(assemble_model(backbone, info.num_features, config), config)
            >>> encoder.with_image_size(48)
            Encoder(image_size=48, embedding='head', distance='cosine', device='cpu')
        """
        config = dataclasses.replace(
            self.config,
            image_size=image_size,
            resize=image_size,
            readout_dim=None,
            embedding="head" if self.config.embedding == "head" else "backbone",
        )
        model = BatchGraphModel(self.model.backbone, self.model.blocks, self.model.head)
        encoder = Encoder(model, config, self.device)
        try:
            encoder.embed(torch.zeros(1, 3, image_size, image_size, dtype=torch.uint8))
        except Exception as error:  # each family of backbones has its own
            raise ValueError(
                f"Expected argument `image_size` to suit backbone {config.backbone!r}, but one "
                f"for images of {self.config.image_size} x {self.config.image_size} pixels takes "
                f"none of {image_size} x {image_size}"
            ) from error
        return encoder

    def fit_readout(
        self,
        images: Images,
        labels: Tensor | None = None,
        *,
        covariance: str | None = None,
        shrinkage: float = SHRINKAGE,
        dim: int | None = None,
        batch_size: int = 64,
        workers: int = 0,
    ) -> Encoder:
        """Fit a readout to images and return an encoder that has it, see :meth:`with_readout`.

        Args:
            images: Images like those to be searched, as :meth:`embed` takes them.
            labels: Their classes [N], if known.
            covariance: As :func:`bgl.readout.fit_readout` takes it.
            shrinkage: Likewise.
            dim: Dimension of the readout; None: that of the backbone's output.
            batch_size: Images at a time.
            workers: Processes that load the images; 0: this process does.

        Raises:
            ValueError: As :meth:`embed` and :func:`bgl.readout.fit_readout`.
        """
        x = self.embed(images, batch_size, "backbone", workers)
        return self.with_readout(
            fit_readout(x, labels, covariance=covariance, shrinkage=shrinkage, dim=dim)
        )

    @overload
    def embed(
        self,
        images: Images,
        batch_size: int = ...,
        output: str = ...,
        workers: int = ...,
        on_batch: Callable[[int], None] = ...,
        on_broken: Callable[[int, BrokenImageError], None] | None = ...,
        on_device: bool = ...,
    ) -> Tensor: ...
    @overload
    def embed(
        self,
        images: Images,
        batch_size: int = ...,
        *,
        output: None,
        workers: int = ...,
        on_batch: Callable[[int], None] = ...,
        on_broken: Callable[[int, BrokenImageError], None] | None = ...,
        on_device: bool = ...,
    ) -> dict[str, Tensor]: ...
    @torch.no_grad()
    def embed(
        self,
        images: Images,
        batch_size: int = 64,
        output: str | None = "default",
        workers: int = 0,
        on_batch: Callable[[int], None] = lambda _: None,
        on_broken: Callable[[int, BrokenImageError], None] | None = None,
        on_device: bool = False,
    ) -> Tensor | dict[str, Tensor]:
        """Embed images of any size, each by itself. The model's mode is left as it was.

        Args:
            images: A uint8 tensor [N, 3, H, W], a dataset, or a sequence of paths, bytes, Pillow
                images, uint8 arrays [H, W, 3] and uint8 tensors [3, H, W].
            batch_size: Images at a time; the result depends on it by rounding only.
            output: "readout", "backbone" or "head"; "default": the one of these that the model was
                chosen by (``config.embedding``); None: all that it has, by name.
            workers: Processes that load the images; 0: this process does.
            on_batch: Called after each batch with its number of images.
            on_broken: Called with the index and the error of an image that cannot be read; the
                image is then left out. None: the error is raised.
            on_device: Leave the result on the model's device.

        Returns:
            Embeddings [N, D], in float32, on the CPU by default.

        Raises:
            ValueError: If there are no images, or one is neither a path nor such a tensor; a
                file that cannot be read is named (:class:`bgl.images.BrokenImageError`).
            ChildProcessError: If a loading process was lost.
        """
        names = self.config.embeddings
        if output is not None:
            output = self.config.embedding if output == "default" else output
            names = (check_choice(output, "output", names),)
        check_int(batch_size, "batch_size", 1)
        check_int(workers, "workers", 0)
        _check_images(images)
        keys = [(row, 0) for row in range(len(images))]
        batches = [keys[start : start + batch_size] for start in range(0, len(keys), batch_size)]
        loader = ImageLoader(
            _Crops(images, self.transform.crop),
            image_size=self.config.image_size,
            batch_size=min(batch_size, len(images)),
            workers=workers,
        )
        parts: dict[str, list[Tensor]] = {name: [] for name in names}
        kept_on = self.device if on_device else torch.device("cpu")
        first: BrokenImageError | None = None
        was_training = self.model.training
        self.model.eval()
        try:
            for batch, (x, broken) in zip(batches, loader.load(batches), strict=True):
                for i, error in sorted(broken.items()):
                    if on_broken is None:
                        raise error
                    on_broken(batch[i][0], error)
                    first = first or error
                if len(x):
                    with torch.autocast(self.device.type, enabled=False):
                        result = self.model(self.to_device(x))
                    for name, part in parts.items():
                        part.append(getattr(result, _OUTPUTS[name]).float().to(kept_on))
                on_batch(len(batch))
        finally:
            loader.close()
            self.model.train(was_training)
        if first is not None and not all(parts.values()):
            raise ValueError(
                "Expected argument `images` to have images that can be read, but none of "
                f"{len(images)} can; the first: {first}"
            )
        found = {name: torch.cat(part) for name, part in parts.items()}
        return found if output is None else found[output]

    def to_device(self, images: Tensor) -> Tensor:
        """Move uint8 images [N, 3, S, S] to the model and normalise them there.

        On a GPU nothing waits: the copy runs beside what the model computes of earlier batches,
        and ``images`` may be overwritten at once.
        """
        if self._copies is None:
            return self.transform.normalize(images)
        model = torch.cuda.current_stream(self.device)
        with torch.cuda.stream(self._copies):
            x = images.pin_memory().to(self.device, non_blocking=True)
            x = self.transform.normalize(x)
        model.wait_stream(self._copies)
        x.record_stream(model)
        return x

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(image_size={self.config.image_size}, "
            f"embedding={self.config.embedding!r}, "
            f"distance={self.distance!r}, device={str(self.device)!r})"
        )


@dataclass(frozen=True)
class _Crops:
    """Images on their way into the model, by index; a loading process gets a copy."""

    images: Images
    crop: Crop

    def __getitem__(self, key: Key) -> Tensor:
        index, side = key[0], self.crop.min_side
        if isinstance(self.images, ImageSource):
            return self.crop(self.images.read(index, side))
        image = self.images[index]
        return self.crop(as_image(image, side))


def _check_images(images: Images) -> None:
    """Raise unless there are images, each of a kind that :func:`as_image` takes."""
    expected = (
        "Expected argument `images` to be paths, bytes, Pillow images, uint8 arrays [H, W, 3] or "
        "uint8 tensors [3, H, W]"
    )
    one = isinstance(images, np.ndarray) and images.ndim < 4
    if one or isinstance(images, (str, Path, bytes)) or not hasattr(images, "__len__"):
        raise ValueError(f"{expected} in a list, got {describe(images)}")
    if len(images) == 0:
        raise ValueError(f"{expected}, but got none")
    for i, image in enumerate(() if isinstance(images, ImageSource) else images):
        if not is_image_like(image):
            raise ValueError(f"{expected}, but got {describe(image)} at index {i}")
