"""Decoded images in a folder, for all processes and later epochs."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bgl._checks import check_int
from bgl._io import atomic_path
from bgl.images.reading import read_image
from bgl.images.transforms import resize


@dataclass(frozen=True)
class ImageCache:
    """Decodes an image once and keeps its pixels, scaled down, in a file of a folder.

    Files of the folder are in the system's memory as long as there is room. They are found by the
    path, size and time of the image file, and may be deleted at any time.

    Args:
        folder: Where pixels are kept; made if needed.
        side: Larger images are resized so that this is their shorter side.
    """

    folder: Path
    side: int

    def __post_init__(self) -> None:
        check_int(self.side, "side", 1)

    def read(self, path: Path) -> Tensor:
        """Read an image as uint8 [3, H, W], from the folder if it is there.

        Raises:
            BrokenImageError: If the file cannot be decoded.
            OSError: If the pixels cannot be written.
        """
        try:
            status = os.stat(path)
        except OSError:
            return read_image(path)  # which names what is wrong
        key = f"{os.path.abspath(path)} {status.st_size} {status.st_mtime_ns} {self.side}"
        name = hashlib.sha256(os.fsencode(key)).hexdigest()
        file = self.folder / name[:2] / name[2:32]
        try:
            stored = np.fromfile(file, np.uint8)
            height, width = stored[:8].view("<u4").tolist()
            pixels = stored[8:].reshape(height, width, 3)
        except (FileNotFoundError, ValueError):  # not there, or cut off when the system went down
            return self._store(path, file)
        return torch.from_numpy(pixels).permute(2, 0, 1)

    def _store(self, path: Path, file: Path) -> Tensor:
        image = read_image(path, 2 * self.side)
        if min(image.shape[1:]) > self.side:
            image = resize(image, [self.side])
        pixels = image.permute(1, 2, 0).contiguous()
        file.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(file, sync=False) as temporary:
            size = np.array(pixels.shape[:2], "<u4")
            temporary.write_bytes(size.tobytes() + pixels.numpy().tobytes())
        return pixels.permute(2, 0, 1)
