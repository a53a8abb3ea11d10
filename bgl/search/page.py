"""Results of a search as one HTML file that needs no network and no other file."""

from __future__ import annotations

import html
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from bgl._gallery import figure, short_name, write_gallery
from bgl.images.reading import printable
from bgl.search.index import Hit


def write_results(
    results: Mapping[Path, Sequence[Hit]], path: str | Path, measure: str, about: str = ""
) -> Path:
    """Write a page with each query and its hits, nearest first.

    Args:
        results: Hits by query, as :meth:`bgl.search.SearchIndex.query` gives them.
        path: File to write, atomically.
        measure: What the scores are.
        about: A line of text at the top.

    Returns:
        The file's path.

    Example:
        >>> import tempfile
        >>> page = write_results({}, tempfile.mkdtemp() + "/search.html", "cosine similarity")
        >>> page.name
        'search.html'
    """
    sections = [_section(query, hits) for query, hits in results.items()]
    lines = [about, f"The number under each image is its {measure} to the query, nearest first."]
    return write_gallery(path, "Search results", " · ".join(filter(None, lines)), sections)


def _section(query: Path, hits: Sequence[Hit]) -> str:
    """Show a query, the classes of its hits by number, and the hits."""
    figures = "\n".join(f"<li>{_hit(rank, hit)}</li>" for rank, hit in enumerate(hits, start=1))
    counts = Counter(_class(hit) for hit in hits).most_common()
    classes = ", ".join(f"{name} ({count})" for name, count in counts)
    name = html.escape(short_name(query))
    return (
        f"<section>\n<h2>{name}</h2>\n<p>Found: {html.escape(classes)}</p>\n"
        f'<div class="answer">{figure(query, "query", "")}\n<ol>\n{figures}\n</ol></div>\n'
        "</section>"
    )


def _hit(rank: int, hit: Hit) -> str:
    return figure(
        hit.path, f"{rank}. {_class(hit)}", f"{hit.score:.3f} · {printable(hit.path.name)}"
    )


def _class(hit: Hit) -> str:
    """Name the class of a hit: its label, else its folder."""
    return printable(hit.label or hit.path.parent.name)
