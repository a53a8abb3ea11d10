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
:root { --back: #fff; --panel: #f4f6f8; --text: #1b1f24; --faint: #57606a; --line: #d8dee4;
  --accent: #0067a3; color-scheme: light dark; }
@media (prefers-color-scheme: dark) {
  :root { --back: #14171c; --panel: #1e232b; --text: #e8eaed; --faint: #a3acb8; --line: #363d48;
    --accent: #6cbcf0; }
}
* { box-sizing: border-box; }
body { font: 15px/1.45 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; margin: 0;
  background: var(--back); color: var(--text); }
main { max-width: 1400px; margin: 0 auto; padding: 1rem 1.25rem; }
h1 { font-size: 1.3rem; margin: 0; }
h2 { font-size: 1.05rem; margin: 0; overflow-wrap: anywhere; }
p { color: var(--faint); margin: .25rem 0; overflow-wrap: anywhere; }
a { color: var(--accent); }
section { border-top: 1px solid var(--line); margin-top: 1rem; padding-top: 1rem; }
pre { background: var(--panel); border-radius: 8px; padding: .75rem; overflow-x: auto; }
ol { list-style: none; margin: .75rem 0; padding: 0; display: grid; gap: .75rem;
  grid-template-columns: repeat(auto-fill, minmax(8.5rem, 1fr)); }
figure { margin: 0; padding: .5rem; border-radius: 8px; background: var(--panel); height: 100%; }
figcaption { font-size: .85rem; line-height: 1.3; margin-top: .35rem; overflow-wrap: anywhere; }
figcaption span { color: var(--faint); }
img, .missing { display: block; width: 100%; aspect-ratio: 1; object-fit: contain;
  border-radius: 4px; background: #8882; }
.missing { display: flex; align-items: center; justify-content: center; }
a:focus-visible { outline: 3px solid var(--accent); }
.answer { display: grid; grid-template-columns: 13rem minmax(0, 1fr); gap: 1.25rem; }
.answer > figure { border: 2px solid var(--accent); height: auto; align-self: start; }
.answer ol { margin: 0; }
@media (max-width: 700px) {
  .answer { grid-template-columns: minmax(0, 1fr); }
  .answer > figure { max-width: 10rem; }
  ol { grid-template-columns: repeat(3, minmax(0, 1fr)); }
}
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
