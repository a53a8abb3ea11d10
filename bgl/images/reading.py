"""Image files as RGB tensors."""

from __future__ import annotations

import io
import os
import re
import stat
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from PIL import ExifTags, Image
from torch import Tensor

from bgl._checks import check_int

with suppress(ImportError):  # the extra "heic"
    import pillow_heif

    pillow_heif.register_heif_opener()

#: Files with these endings, in lower or upper case, are images; others are ignored. They do not
#: depend on what is installed, so that a folder is the same dataset everywhere.
IMAGE_SUFFIXES = frozenset(
    {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"}
    | {".avif", ".heic", ".heif"}  # which need a new Pillow, or the extra "heic"
)


def printable(text: str | Path) -> str:
    """Make the name of a file safe to show: no control characters, whatever bytes are in it."""
    text = re.sub(r"[\ud800-\udfff]", "\N{REPLACEMENT CHARACTER}", str(text))
    return re.sub(r"[\x00-\x1f\x7f-\x9f]", lambda found: f"\\x{ord(found[0]):02x}", text)


class BrokenImageError(ValueError):
    """An image file that is missing or cannot be decoded; ``path`` is the file."""

    def __init__(self, path: Path | str, reason: str) -> None:
        super().__init__(path, reason)  # both, so that it can be pickled
        self.path = Path(path)
        self.reason = reason

    def __str__(self) -> str:
        return (
            "Expected an image file that can be decoded, but got "
            f"{printable(self.path)}: {printable(self.reason)}"
        )


def to_rgb(image: Image.Image) -> Tensor:
    """Convert a Pillow image of any mode to a uint8 tensor [3, H, W], channels last in memory.

    Transparent parts become white, the image is turned upright, and grey values of 16 bits are
    scaled to 8.

    Raises:
        ValueError: If the image has grey values whose range is unknown (32 bits, floats).
    """
    image.load()  # the metadata may lie behind the pixels
    orientation = _orientation(image)
    if image.mode == "F" or image.mode.startswith("I"):
        image = _scale_grey(image)
    if image.has_transparency_data:
        key = image.info.get("transparency")
        if isinstance(key, tuple) and max(key) > 255:  # of 16 bits, of which Pillow keeps 8
            image.info["transparency"] = tuple(value >> 8 for value in key)
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    pixels = np.array(image if image.mode == "RGB" else image.convert("RGB"))
    return _upright(torch.from_numpy(pixels).permute(2, 0, 1), orientation)


def _orientation(image: Image.Image) -> int:
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # damaged metadata raise anything; the pixels are good all the same
        return 1
    return orientation if isinstance(orientation, int) else 1


def _upright(image: Tensor, orientation: int) -> Tensor:
    """Turn an image [3, H, W] upright, by the orientation that its camera noted."""
    if orientation in (5, 6, 7, 8):
        image = image.transpose(1, 2)
    flipped = {2: [2], 3: [1, 2], 4: [1], 6: [2], 7: [1, 2], 8: [1]}.get(orientation)
    return image.flip(flipped) if flipped else image


def _scale_grey(image: Image.Image) -> Image.Image:
    """Scale grey values of 16 bits to 8, where Pillow would clip them at 255."""
    if image.mode == "F" or (image.mode == "I" and image.format not in ("PNG", "PPM")):
        raise ValueError(
            f"grey values of unknown range (Pillow's mode {image.mode}); "
            "save the image with 8 or 16 bits per channel"
        )
    pixels = np.asarray(image)
    grey = Image.fromarray((pixels >> 8).astype(np.uint8))
    key = image.info.get("transparency")
    if key is not None:
        grey.putalpha(Image.fromarray(np.where(pixels == key, 0, 255).astype(np.uint8)))
    return grey


def read_image(path: Path, min_side: int | None = None) -> Tensor:
    """Read the first frame of an image file as an RGB uint8 tensor [3, H, W].

    Grey, palette and CMYK images become RGB, transparent ones are put on white, and the
    orientation noted by a camera is applied. Damaged metadata (EXIF, colour profiles, comments)
    are ignored. In memory the channels are last.

    Args:
        path: The file.
        min_side: Decode a JPEG file at 1/2, 1/4 or 1/8 of its size, which takes a fraction of the
            time, if its shorter side then still has this many pixels. None: at its full size.

    Raises:
        BrokenImageError: If the file is missing, is no file (a pipe, a folder) or cannot be
            decoded to the end.
    """
    path = Path(path)
    try:
        regular = stat.S_ISREG(os.stat(path).st_mode)
    except FileNotFoundError as error:
        raise BrokenImageError(path, "it does not exist") from error
    except (OSError, ValueError) as error:  # no permission; a zero byte in the name
        raise BrokenImageError(path, f"{type(error).__name__}: {error}") from error
    if not regular:  # opening a pipe would wait for ever
        raise BrokenImageError(path, "it is a folder, a pipe or a device, not a file")
    return decode_image(path, min_side)


def decode_image(
    file: Path | bytes, min_side: int | None = None, name: str = "the content of a file"
) -> Tensor:
    """Decode an image file, or the content of one called ``name``, as :func:`read_image` does.

    Raises:
        BrokenImageError: If it cannot be decoded to the end.
    """
    if min_side is not None:
        check_int(min_side, "min_side", 1)
    try:
        return _decode(io.BytesIO(file) if isinstance(file, bytes) else file, min_side)
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, struct.error, ...
        try:
            data = file if isinstance(file, bytes) else file.read_bytes()
            return _decode(io.BytesIO(_without_metadata(data)), None)
        except Exception:
            path = Path(name) if isinstance(file, bytes) else file
            reason = f"{type(error).__name__}: {error}{_advice(path, error)}"
            raise BrokenImageError(path, reason) from error


def _decode(file: Path | io.BytesIO, min_side: int | None) -> Tensor:
    with Image.open(file) as image:
        if min_side is not None:
            image.draft(None, (min_side, min_side))
        return to_rgb(image)


def _advice(path: Path, error: Exception) -> str:
    suffix = path.suffix.lower()
    if isinstance(error, Image.DecompressionBombError):
        return "; shrink it, or set PIL.Image.MAX_IMAGE_PIXELS = None if you trust your files"
    if suffix in IMAGE_SUFFIXES and suffix not in Image.registered_extensions():
        return f"; for {suffix} files: pip install 'bgl[heic]' 'pillow>=11.3'"
    return ""


def _without_metadata(data: bytes) -> bytes:
    """Strip a PNG or JPEG file of what its pixels do not need; leave other content as it is.

    Every part begins with its length, so nothing has to be understood to be left out.
    """
    if data.startswith(b"\x89PNG"):
        kept, at = [data[:8]], 8
        while at < len(data):
            end = at + 12 + int.from_bytes(data[at : at + 4], "big")
            name = data[at + 4 : at + 8]
            if name[:1].isupper() or name == b"tRNS":  # capital: critical
                kept.append(data[at:end])
            at = end
        return b"".join(kept)
    if data.startswith(b"\xff\xd8"):
        kept, at = [data[:2]], 2
        while (marker := data[at : at + 2]) > b"\xff" and marker != b"\xff\xda":  # until the scan
            end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
            colours = marker == b"\xff\xee" and end - at >= 16  # Adobe's: RGB, CMYK or YCCK
            if not (b"\xff\xe0" <= marker <= b"\xff\xef" or marker == b"\xff\xfe") or colours:
                kept.append(data[at:end])
            at = end
        return b"".join(kept) + data[at:]
    return data
