"""The packaged dataset: one class an emoji, one sample a design team's drawing of it."""

from __future__ import annotations

import io
import json
import zipfile
from importlib import resources
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from bgl.datasets.base import ImageDataset, Splits
from bgl.images.reading import to_rgb


def load_emoji() -> Splits:
    """Load the emoji that come with the package, decoded into memory (about 105 MB).

    8,699 drawings of 1,189 emoji at 64 × 64 pixels, by class: 300 to train (2,202 images), 295
    for validation (2,147), 594 to test (4,350).

    Eight styles, at least six to a class: noto, noto-v1, twemoji, fluent-emoji,
    fluent-emoji-flat, fluent-emoji-high-contrast, fxemoji, emojione. An item's name in ``paths``
    is ``class/style``. The parts are fixed, and variants of one emoji (man/woman/person, colours
    of a heart, clock faces, ...) are all in the same part. ``NOTICE`` beside the file names the
    designers and their licences.

    Two things make the task easier or harder than it looks. The three fluent styles are one
    drawing rendered three ways, so they are near duplicates of each other. And some sets draw two
    emoji alike, mostly "person ..." and "man ..." or "woman ...": about 40 pairs of classes share
    an image to the bit, always inside one part. Raw pixels reach a Recall@1 of about 46.6 % on
    the test part (see :func:`~bgl.datasets.raw_pixels`).

    Raises:
        FileNotFoundError: If the package was installed without its data.
    """
    packaged = resources.files("bgl.datasets") / "data" / "emoji.zip"
    with packaged.open("rb") as file, zipfile.ZipFile(file) as archive:
        index = json.loads(archive.read("index.json"))
        blob = memoryview(archive.read("images.bin"))
    starts = {}
    position = 0
    for entry in index["classes"]:
        starts[entry["name"]] = position
        position += sum(entry["images"].values())
    parts = {}
    for part in ("train", "val", "test"):
        classes = [entry for entry in index["classes"] if entry["part"] == part]
        parts[part] = _dataset(classes, starts, blob, index["size"])
    return Splits("emoji", parts["train"], parts["val"], parts["test"])


def _dataset(
    classes: list[dict[str, Any]], starts: dict[str, int], blob: memoryview, size: int
) -> ImageDataset:
    """Decode the images of ``classes``; those of a class lie one after another in ``blob``."""
    images = torch.empty(
        sum(len(entry["images"]) for entry in classes), 3, size, size, dtype=torch.uint8
    )
    labels: list[int] = []
    paths: list[str] = []
    for label, entry in enumerate(classes):
        position = starts[entry["name"]]
        for style, length in entry["images"].items():
            images[len(labels)] = _decode(blob[position : position + length])
            labels.append(label)
            paths.append(f"{entry['name']}/{style}")
            position += length
    return ImageDataset(
        images, torch.tensor(labels), [entry["name"] for entry in classes], paths=paths
    )


def _decode(data: memoryview) -> Tensor:
    with Image.open(io.BytesIO(data)) as image:
        return to_rgb(image)
