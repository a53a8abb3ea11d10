"""Pictures with captions as one HTML file that needs no network and no other file."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from PIL import Image

from bgl._io import write_text
from bgl.images import BrokenImageError, read_image
from bgl.images.reading import printable

SIDE = 160  # of a thumbnail, in pixels

_STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 1200px; padding: 1rem; }
ol { list-style: none; margin: 1rem 0 3rem; padding: 0; display: flex; flex-wrap: wrap; gap: 1rem; }
figure { margin: 0; width: 160px; }
figcaption { font-size: .85rem; overflow-wrap: anywhere; }
img, .missing { width: 160px; height: 160px; object-fit: contain; background: #8882; }
.missing { display: flex; align-items: center; justify-content: center; }
.query img { outline: 3px solid #0072b2; }
"""

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<main>
<h1>{title}</h1>
<p>{about}</p>
{sections}
</main>
</body>
</html>
"""


def write_gallery(path: str | Path, title: str, about: str, sections: Sequence[str]) -> Path:
    """Write a page, atomically.

    Args:
        path: File to write.
        title: Its title, plain text.
        about: A line below, plain text.
        sections: HTML, with pictures from :func:`figure`.

    Returns:
        The file's path.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    head = {"title": html.escape(printable(title)), "about": html.escape(printable(about))}
    write_text(path, _PAGE.format(style=_STYLE, sections="\n".join(sections), **head))
    return path


def figure(path: Path, caption: str) -> str:
    """Show an image file with a caption, plain text."""
    name = html.escape(short_name(path))
    place = html.escape(printable(path))
    picture = '<div class="missing">no longer there</div>'
    if path.is_file():  # reading would wait for ever at a named pipe
        with suppress(BrokenImageError):  # changed since the index was built
            picture = f'<img src="{_thumbnail(path)}" alt="{name}">'
    return (
        f'<figure title="{place}">{picture}<figcaption>{html.escape(caption)}<br>{name}'
        "</figcaption></figure>"
    )


def short_name(path: Path) -> str:
    """Name a file with its folder, which is often its class."""
    return printable("/".join(path.parts[-2:]))


def _thumbnail(path: Path) -> str:
    """Make a small JPEG of an image file, as a data URI."""
    image = Image.fromarray(read_image(path).permute(1, 2, 0).numpy())
    image.thumbnail((SIDE, SIDE))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
