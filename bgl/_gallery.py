"""Pictures with captions as one HTML file that needs no network and no other file."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from string import Template

from PIL import Image

from bgl._io import write_text
from bgl.images import BrokenImageError, read_image
from bgl.images.reading import printable

SIDE = 160  # of a thumbnail, in pixels


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
    page = Template(Path(__file__).with_name("_gallery.html").read_text(encoding="utf-8"))
    head = {"title": html.escape(printable(title)), "about": html.escape(printable(about))}
    write_text(path, page.substitute(head, sections="\n".join(sections)))
    return path


def figure(path: Path, caption: str, below: str | None = None) -> str:
    """Show an image file that leads to the file itself, with a caption.

    Args:
        path: The file.
        caption: Plain text.
        below: A second line, plain text; default: the file's short name.
    """
    name, place = html.escape(short_name(path)), html.escape(printable(path))
    text = name if below is None else html.escape(below)
    picture = '<div class="missing">no longer there</div>'
    if path.is_file():  # reading would wait for ever at a named pipe
        with suppress(BrokenImageError):  # changed since the index was built
            shown = f'<img src="{_thumbnail(path)}" alt="{name}" loading="lazy">'
            picture = f'<a href="{html.escape(path.resolve().as_uri())}">{shown}</a>'
    return (
        f'<figure title="{place}">{picture}<figcaption>{html.escape(caption)}<br>'
        f"<span>{text}</span></figcaption></figure>"
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
