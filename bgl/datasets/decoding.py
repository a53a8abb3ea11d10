"""Which image files cannot be decoded, all of them looked at in a few seconds."""

from __future__ import annotations

import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from bgl.images import BrokenImageError, read_image
from bgl.images.loading import num_workers
from bgl.images.reading import printable


def broken_images(files: Sequence[Path]) -> dict[Path, str]:
    """Decode every file; return those that fail, with the reason.

    In threads, because Pillow's decoders run beside each other, and JPEG files at an eighth of
    their size, which reads them to the end all the same.
    """
    with ThreadPoolExecutor(num_workers(-1)) as pool:
        reasons = pool.map(_reason, files)
    return {file: reason for file, reason in zip(files, reasons, strict=True) if reason}


def _reason(file: Path) -> str | None:
    try:
        read_image(file, min_side=1)
    except BrokenImageError as error:
        return short_reason(error)
    return None


def short_reason(error: BrokenImageError) -> str:
    """Say why an image is broken, without its path: files with one reason are named together."""
    path = r"(?<=image file) (\w+\()?(['\"]).*?\2\)?(?=;|$)"
    return printable(re.sub(path, "", error.reason, count=1))
