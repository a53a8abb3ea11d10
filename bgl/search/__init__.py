"""Find the images nearest to an image with a trained model: an index of many, a page of results.

Needs ``pip install bgl[train]``. On the command line: ``python -m bgl.search --help``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bgl._lazy import lazily

if TYPE_CHECKING:
    from bgl.images.finding import find_images
    from bgl.search.index import Hit, SearchIndex
    from bgl.search.page import write_results

__all__ = ["Hit", "SearchIndex", "find_images", "write_results"]

__getattr__ = lazily(
    __name__,
    {
        "bgl.images.finding": ["find_images"],
        "bgl.search.index": ["Hit", "SearchIndex"],
        "bgl.search.page": ["write_results"],
    },
)
