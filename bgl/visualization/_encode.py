"""Arrays and pictures as text for the explorer page."""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

PIXELS = 6_000_000  # of one atlas: about 2 MB
LIMITS = 24, 64  # smallest and largest side of a thumbnail


def text64(array: np.ndarray, kind: str) -> str:
    """Encode an array in base64, little-endian, as numpy's type ``kind`` ("u2", "f4")."""
    return base64.b64encode(np.ascontiguousarray(array, dtype="<" + kind).tobytes()).decode()


def weights64(weight: np.ndarray) -> dict[str, Any]:
    """Encode weights from 0 in 16 bits, with what to multiply them by."""
    positive = np.clip(np.nan_to_num(weight.astype(np.float64), posinf=0.0), 0.0, None)
    largest = float(positive.max(initial=0.0)) or 1.0
    return {"weight": text64(np.round(65535 * positive / largest), "u2"), "largest": largest}


def atlas(images: Iterable[Tensor], count: int) -> dict[str, Any]:
    """Put pictures on one sheet, a WebP data URI.

    Args:
        images: uint8 tensors [3, H, W] of any size; brought to one side length.
        count: How many there are.
    """
    side = int(min(max(math.sqrt(PIXELS / max(count, 1)), LIMITS[0]), LIMITS[1]))
    columns = max(1, math.ceil(math.sqrt(count)))
    sheet = Image.new("RGB", (columns * side, max(1, math.ceil(count / columns)) * side), "white")
    for i, image in enumerate(images):
        picture = Image.fromarray(image.permute(1, 2, 0).cpu().numpy())
        if picture.size != (side, side):
            picture = picture.resize((side, side), Image.Resampling.LANCZOS)
        sheet.paste(picture, (i % columns * side, i // columns * side))
    file = io.BytesIO()
    sheet.save(file, "WEBP", quality=70, method=2)
    uri = "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode()
    return {"src": uri, "side": side, "columns": columns}


def script_json(value: Any) -> str:
    """Write JSON that is safe inside a ``<script>`` element, whatever texts are in it."""
    text = json.dumps(_plain(value), ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _plain(value: Any) -> Any:
    """Convert to what JSON knows; numbers that are not finite become null."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, (np.ndarray, np.generic, torch.Tensor)):
        return _plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)
