"""Results of a search as one HTML file that needs no network and no other file."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from pathlib import Path

from bgl._gallery import figure, short_name, write_gallery
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
    sections = [_section(query, hits, measure) for query, hits in results.items()]
    return write_gallery(path, "Search results", about, sections)


def _section(query: Path, hits: Sequence[Hit], measure: str) -> str:
    figures = "\n".join(
        f"<li>{figure(hit.path, f'{rank}. {measure} {hit.score:.3f}')}</li>"
        for rank, hit in enumerate(hits, start=1)
    )
    name = html.escape(short_name(query))
    return (
        f'<section>\n<h2>{name}</h2>\n<div class="query">{figure(query, "query")}</div>\n'
        f"<ol>\n{figures}\n</ol>\n</section>"
    )
