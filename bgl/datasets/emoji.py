"""The packaged dataset: one class an emoji, one sample a design team's drawing of it."""

from __future__ import annotations

import io
import json
import zipfile
from importlib import resources
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor

from bgl.datasets.base import ImageDataset, Splits
from bgl.images.reading import to_rgb


def load_emoji() -> Splits:
    """Load the emoji that come with the package into memory (about 105 MB).

    8,699 drawings of 1,189 emoji at 64 × 64 pixels, by class: 300 to train (2,202 images), 295
    for validation (2,147), 594 to test (4,350).

    Eight styles, at least six to a class: noto, noto-v1, twemoji, fluent-emoji,
    fluent-emoji-flat, fluent-emoji-high-contrast, fxemoji, emojione. An item's name in ``paths``
    is ``class/style``. The parts are fixed, and variants of one emoji (man/woman/person, colours
    of a heart, clock faces, ...) are all in the same part. ``NOTICE`` next to the file names the
    designers and their licences.

    Two things make the task easier or harder than it looks. The three fluent styles are one
    drawing rendered three ways, so they are near duplicates of each other. And some sets draw two
    emoji alike, mostly "person ..." and "man ..." or "woman ...": about 40 pairs of classes share
    an image bit for bit, always inside one part. Raw pixels reach a Recall@1 of about 46.6 % on
    the test part (see :func:`~bgl.datasets.raw_pixels`).

    Raises:
        FileNotFoundError: If the package was installed without its data.
    """
    packaged = resources.files("bgl.datasets") / "data" / "emoji.zip"
    with packaged.open("rb") as file, zipfile.ZipFile(file) as archive:
        index = json.loads(archive.read("index.json"))
        blob = memoryview(archive.read("images.bin"))
    parts = {part: _Part([], [], [], []) for part in ("train", "val", "test")}
    position = 0
    for entry in index["classes"]:  # whose images lie one after another in the blob
        part = parts[entry["part"]]
        for style, length in entry["images"].items():
            with Image.open(io.BytesIO(blob[position : position + length])) as image:
                part.images.append(to_rgb(image))
            part.labels.append(len(part.names))
            part.paths.append(f"{entry['name']}/{style}")
            position += length
        part.names.append(entry["name"])
    train, val, test = (
        ImageDataset(
            torch.stack(part.images), torch.tensor(part.labels), part.names, paths=part.paths
        )
        for part in parts.values()
    )
    return Splits("emoji", train, val, test)


class _Part(NamedTuple):
    images: list[Tensor]
    labels: list[int]
    paths: list[str]
    names: list[str]
