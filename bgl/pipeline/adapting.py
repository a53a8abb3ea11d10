"""``bgl adapt``: an encoder adapted to a folder of images without labels, in one call."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import json
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from accelerate.utils import set_seed
from rich.console import Console
from torch import Tensor

from bgl import models
from bgl._io import read_json, write_text
from bgl.datasets import ImageDataset, load_dataset
from bgl.datasets.decoding import broken_images
from bgl.datasets.folder import read_folder
from bgl.metrics import retrieval_metrics
from bgl.models import Encoder, ModelConfig, assemble_model, create_backbone
from bgl.models.files import CONFIG_FILE, HUB, MODELS, is_name
from bgl.pipeline.comparison import METRICS, percent
from bgl.pipeline.folder import locked
from bgl.pipeline.table import markdown_table
from bgl.pipeline.terminal import TerminalProgress
from bgl.refinement import gallery_readout
from bgl.search import find_images
from bgl.training import make_accelerator
from bgl.training.adapting import AdaptConfig, adapt_encoder, best_epoch
from bgl.training.distributed import on_first_process

RECORD_FILE = "adapt.json"
PACKAGED = "emoji"  # the dataset that needs no folder
HEAD_DIM = 128  # of the head that a model has besides; nothing here trains it

Metrics = dict[str, float]


@dataclass(frozen=True)
class Adapted:
    """What :func:`adapt` returns; printed, it is the table, if anything was measured.

    Args:
        encoder: The adapted model, whose embedding is its readout.
        history: A row for each epoch: its loss and the agreement of neighbours; first epoch 0.
        rows: Figures of the test images by model and embedding; empty without ``measure``.
        folder: Where the model is.
        skipped: Images that could not be read.
    """

    encoder: Encoder
    history: list[dict[str, Any]]
    rows: dict[str, Metrics]
    folder: Path
    skipped: list[str]

    @property
    def epoch(self) -> int:
        """The epoch that was taken; 0: the model as it came."""
        return best_epoch(self.history)

    def __str__(self) -> str:
        titles = {name: title for name, title in METRICS.items() if name != "r_precision"}
        lines = [
            [name, *(percent([metrics[metric]]) for metric in titles)]
            for name, metrics in self.rows.items()
        ]
        return markdown_table(["model", *titles.values()], lines)


def adapt(
    model: str | Path | Encoder,
    images: str | Path | Sequence[str | Path] | Tensor | ImageDataset,
    *,
    output_dir: str | Path,
    measure: str | Path | ImageDataset | None = None,
    image_size: int | None = None,
    quiet: bool = False,
    **options: Any,
) -> Adapted:
    """Adapt an encoder to images without labels, as ``bgl adapt`` does.

    See :func:`bgl.training.adapting.adapt_encoder` for how. A call that was interrupted is
    resumed by repeating it.

    Args:
        model: The folder of a model or ``"hf-hub:USER/NAME"``, the name of a backbone with
            pretrained weights, or an encoder.
        images: Image files, and folders to search for them; a uint8 tensor [N, 3, H, W]; or a
            dataset, whose labels are not used. Files that cannot be read are left out.
        output_dir: Folder for the adapted model.
        measure: Labelled images to measure the model on before and after: a folder with
            ``CLASS/*``, or with ``train`` and ``test`` (which is taken); "emoji", the packaged
            test classes; or a dataset.
        image_size: Side of the images for a pretrained backbone; default: 224. A model that was
            trained keeps its own.
        quiet: Print nothing.
        options: Fields of :class:`bgl.training.adapting.AdaptConfig`.

    Raises:
        ValueError: If an option is unknown, there are too few different images, or the folder
            holds something else.
        FileNotFoundError: If model or images do not exist.

    Example:
        >>> adapted = bgl.adapt("tf_efficientnet_lite0", "photos", output_dir="m")  # doctest: +SKIP
        >>> adapted.encoder.embed(["new.jpg"])  # doctest: +SKIP
    """
    names = [field.name for field in dataclasses.fields(AdaptConfig)]
    if unknown := sorted(options.keys() - set(names)):
        raise ValueError(
            f"Expected options of `adapt` to be among {', '.join(names)}, got {unknown[0]!r}"
        )
    config = AdaptConfig(**options)
    make_accelerator(config.device)  # before anything starts CUDA, or asks which process this is
    console = Console(quiet=quiet or int(os.environ.get("RANK", "0")) > 0)
    folder = Path(output_dir)
    data, skipped = _unlabelled(images)
    test = None if measure is None else _labelled(measure)
    encoder = _encoder(model, image_size, config.seed)
    name = str(model) if isinstance(model, str | Path) else "an encoder"
    about: dict[str, Any] = {"model": name, "images": len(data), "skipped": skipped}
    with contextlib.ExitStack() as stack:
        on_first_process(lambda: _claim(stack, folder, about | {"options": config.to_dict()}))
        for path in skipped:
            console.print(f"skipped: {path}", markup=False, highlight=False, soft_wrap=True)
        console.print(f"{len(data):,} images; folder: {folder}", markup=False, highlight=False)
        progress = TerminalProgress(console)
        with progress.bars:
            adapted, history = adapt_encoder(encoder, data, folder, config, progress)
        rows: dict[str, Metrics] = {}
        if test is not None:
            rows = _measure(encoder, adapted, data, test, config)
        result = Adapted(adapted, history, rows, folder, skipped)
        if int(os.environ.get("RANK", "0")) == 0:
            record = about | {"options": config.to_dict(), "epoch": result.epoch, "rows": rows}
            write_text(folder / RECORD_FILE, json.dumps(record, indent=1))
    taken = "the model as it came: adapting did not raise the agreement, the readout is new"
    if result.epoch > 0:
        taken = f"epoch {result.epoch}, of the best agreement of neighbours"
    console.print(f"taken: {taken}", highlight=False, soft_wrap=True)
    if rows:
        console.print(str(result), markup=False, highlight=False, soft_wrap=True)
    return result


def _claim(stack: contextlib.ExitStack, folder: Path, about: dict[str, Any]) -> None:
    """Lock the folder, which has to be new or of the same adaptation."""
    record = folder / RECORD_FILE
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"Expected argument `output_dir` to be a folder, but {folder} is a file")
    if folder.exists() and not record.exists():
        others = [path.name for path in folder.iterdir() if not path.name.startswith(".")]
        if others:
            raise ValueError(
                f"Expected argument `output_dir` to be a new folder, or one that bgl adapt has "
                f"made, but {folder} holds {sorted(others)[0]}: name another"
            )
    stack.enter_context(locked(folder))
    if record.exists():
        stored = read_json(record)
        if stored.get("model") != about["model"]:
            raise ValueError(
                f"Expected {record} to be of the model {about['model']}, but it is of "
                f"{stored.get('model')}; use another --output-dir"
            )
        return
    write_text(record, json.dumps(about, indent=1))


def _encoder(model: str | Path | Encoder, image_size: int | None, seed: int) -> Encoder:
    """Load a model, or make one of a pretrained backbone."""
    if isinstance(model, Encoder):
        found = model
    elif is_name(model) or Path(model).is_dir():
        found = models.load(model)
    elif timm.is_model(str(model)) or ":" in str(model):
        set_seed(seed)  # of the head
        size = 224 if image_size is None else image_size
        backbone, info = create_backbone(str(model), image_size=size)
        config = ModelConfig(info.name, size, info.mean, info.std, HEAD_DIM, embedding="backbone")
        return Encoder(assemble_model(backbone, info.num_features, config), config)
    else:
        raise FileNotFoundError(
            f"Expected argument `model` to be a folder with a model ({CONFIG_FILE}), "
            f"one of {', '.join(MODELS)}, {HUB}USER/NAME, or a backbone of timm, got {str(model)!r}"
        )
    if image_size not in (None, found.config.image_size):
        raise ValueError(
            f"Expected argument `image_size` to be that of the model ({found.config.image_size}), "
            f"got {image_size}: leave it out"
        )
    return found


def _unlabelled(
    images: str | Path | Sequence[str | Path] | Tensor | ImageDataset,
) -> tuple[ImageDataset, list[str]]:
    """Make a dataset of one class, and list the files that cannot be read."""
    skipped: dict[Path, str] = {}
    if isinstance(images, ImageDataset):
        return images, []
    if not isinstance(images, Tensor):
        files = find_images([images] if isinstance(images, str | Path) else images)
        skipped = on_first_process(lambda: broken_images(files))
        images = [file for file in files if file not in skipped]
        if not images:
            path, reason = next(iter(skipped.items()))
            raise ValueError(
                f"Expected argument `images` to have images that can be read, but none of "
                f"{len(skipped)} can; the first: {path}: {reason}"
            )
    data = ImageDataset(images, torch.zeros(len(images), dtype=torch.long), ["gallery"])
    return data, [f"{path}: {reason}" for path, reason in skipped.items()]


def _labelled(measure: str | Path | ImageDataset) -> ImageDataset:
    """The images to measure."""
    if isinstance(measure, ImageDataset):
        return measure
    if str(measure) == PACKAGED and not Path(measure).is_dir():
        return load_dataset(PACKAGED).test
    parts = read_folder(measure).parts
    classes = parts.get("test") or parts["train"]
    pairs = [(file, number) for number, found in enumerate(classes.values()) for file in found]
    broken = on_first_process(lambda: broken_images([file for file, _ in pairs]))
    if broken:
        warnings.warn(
            f"{len(broken)} images to measure cannot be read; the first: {next(iter(broken))}",
            stacklevel=3,
        )
    pairs = [pair for pair in pairs if pair[0] not in broken]
    labels = torch.tensor([number for _, number in pairs])
    return ImageDataset([file for file, _ in pairs], labels, list(classes))


def _measure(
    before: Encoder, after: Encoder, data: ImageDataset, test: ImageDataset, config: AdaptConfig
) -> dict[str, Metrics]:
    """Measure the model as it came, with the gallery's metric alone, and adapted."""
    if set(data.paths) & set(test.paths) and not isinstance(data.images, Tensor):
        warnings.warn(
            "Images that were adapted to are measured: the figures are transductive", stacklevel=3
        )
    before = Encoder(copy.deepcopy(before.model), before.config, after.device)
    features = before.embed(data, output="backbone", on_device=True)
    readout = gallery_readout(features, k=config.k, shrinkage=config.shrinkage)
    arms = {
        f"as it came: {before.config.embedding}": before,
        "as it came: gallery's metric": before.with_readout(readout),
        "adapted": after,
    }
    return {
        name: retrieval_metrics(
            encoder.embed(test, on_device=True), test.labels, distance=encoder.distance
        )
        for name, encoder in arms.items()
    }
