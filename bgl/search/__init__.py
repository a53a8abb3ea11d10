"""Find the images nearest to an image with a trained model: an index of many, a page of results.

Needs ``pip install bgl[train]``. On the command line: ``python -m bgl.search --help``.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bgl.images.finding import find_images
    from bgl.search.index import Hit, SearchIndex
    from bgl.search.page import write_results

__all__ = ["Hit", "SearchIndex", "find_images", "write_results"]

# Imported when they are asked for: the command line is slow to start otherwise.
_HOMES = {
    "Hit": "bgl.search.index",
    "SearchIndex": "bgl.search.index",
    "find_images": "bgl.images.finding",
    "write_results": "bgl.search.page",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
