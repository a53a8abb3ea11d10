"""Small images in every kind of place, and a tiny model."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image


def jpeg(number: int) -> bytes:
    """An image that no other number has."""
    pixels = np.random.default_rng(number).integers(0, 256, (20, 24, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG")
    return file.getvalue()


def make_folder(root: Path, count: int, classes: int = 3) -> Path:
    for number in range(count):
        path = root / f"class{number % classes}" / f"{number:04d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(number))
    return root


def make_tar(path: Path, numbers: range, labels: bool = True) -> Path:
    with tarfile.open(path, "w") as tar:
        for number in numbers:
            members = {f"s/{number:04d}.jpg": jpeg(number), f"s/{number:04d}.json": b"{}"}
            if labels:
                members[f"s/{number:04d}.cls"] = str(number % 3).encode()
            for name, content in members.items():
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return path
