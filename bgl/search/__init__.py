"""Find the images nearest to an image with a trained model: an index of many, a page of results.

Needs ``pip install bgl[search]``. On the command line: ``python -m bgl.search --help``.
"""

from bgl._extras import extra

with extra("search"):
    import faiss  # noqa: F401  # first: what follows would name bgl[train]

    from bgl.search.images import find_images
    from bgl.search.index import Hit, SearchIndex
    from bgl.search.page import write_results

__all__ = ["Hit", "SearchIndex", "find_images", "write_results"]
