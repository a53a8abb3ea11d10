"""Find the images nearest to an image with a trained model: an index of many, a page of results.

Needs ``pip install bgl[train]``. On the command line: ``python -m bgl.search --help``.
"""

from bgl.search.images import find_images
from bgl.search.index import Hit, SearchIndex
from bgl.search.page import write_results

__all__ = ["Hit", "SearchIndex", "find_images", "write_results"]
