"""An approximate faiss index for very many vectors: chosen by rule, its recall measured."""

from __future__ import annotations

import math
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bgl._neighbors import Converted, smallest_products, to_numpy

# One query against so many numbers (256 MiB) takes a core some 50 ms: they are compared exactly.
EXACT_NUMBERS = 2**26
# Beyond so many vectors a byte for each of their numbers no longer fits a usual machine's memory.
BYTE_VECTORS = 30_000_000
TRAINED_PER_LIST = 40  # vectors a list is trained with: faiss asks for 39 at least
CONVERTED_ROWS = 2**16  # vectors given to faiss at a time
# Lists are looked at until so many of the ten nearest are found, of so many queries.
RECALL, SAMPLE, NEAREST = 0.99, 256, 10


def faiss_or_none() -> ModuleType | None:
    """Import faiss, where it is installed: without it vectors are compared exactly."""
    try:
        import faiss
    except ModuleNotFoundError:
        return None
    module: ModuleType = faiss
    return module


def factory(count: int, dim: int) -> str:
    """Choose an index for ``faiss.index_factory``; "" where an exact search is fast enough.

    Lists are about four times the root of the number of vectors, so that finding the right ones
    costs about as much as looking through them. They hold a byte for each number of a vector,
    or, where that is too much, product codes of a quarter of that.

    Example:
        >>> factory(100_000, 128), factory(1_000_000, 128), factory(100_000_000, 128)
        ('', 'IVF4096,SQ8', 'OPQ32_128,IVF32768_HNSW32,PQ32')
    """
    if count * dim <= EXACT_NUMBERS:
        return ""
    lists = 2 ** round(math.log2(4 * math.sqrt(count)))
    if count <= BYTE_VECTORS:
        return f"IVF{lists},SQ8"
    codes = max(1, dim // 4)
    return f"OPQ{codes}_{4 * codes},IVF{lists}_HNSW32,PQ{codes}"


def build(faiss: ModuleType, kind: str, factors: Converted) -> Any:
    """Train an index with a sample of the factors, and put all of them in."""
    width = factors[:1].size(1)
    index = faiss.index_factory(width, kind, faiss.METRIC_INNER_PRODUCT)
    lists = faiss.extract_index_ivf(index).nlist
    step = max(1, len(factors) // (TRAINED_PER_LIST * lists))
    index.train(to_numpy(factors[::step]))
    add(index, factors)
    return index


def add(index: Any, factors: Converted) -> None:
    """Put in the factors that come after those that the index has."""
    for first in range(index.ntotal, len(factors), CONVERTED_ROWS):
        index.add(to_numpy(factors[first : first + CONVERTED_ROWS]))


def remove(faiss: ModuleType, index: Any, kept: Tensor) -> None:
    """Keep some of the vectors, bool [N], and number them anew."""
    gone = _numbers((~kept).nonzero().flatten())
    faiss.extract_index_ivf(index).remove_ids(faiss.IDSelectorBatch(gone))
    index.ntotal = int(kept.sum())
    numbers = _numbers(kept.long().cumsum(0) - 1)
    lists = faiss.extract_index_ivf(index).invlists
    for i in range(lists.nlist):
        size = lists.list_size(i)
        if size > 0:
            ids = faiss.rev_swig_ptr(lists.get_ids(i), size)
            ids[:] = numbers[ids]


def tune(faiss: ModuleType, index: Any, factors: Converted, asked: Converted) -> float:
    """Look at as few lists as find nearly all of what is nearest to a sample of the images.

    Args:
        faiss: The module.
        index: The index; its ``nprobe`` is set.
        factors: What is in it.
        asked: The same images as queries.

    Returns:
        The recall: the share of the ten nearest other images, by an exact search, that are among
        the candidates for ten.
    """
    sample = torch.arange(0, len(factors), max(1, len(factors) // SAMPLE))
    queries = asked[sample]
    exact = smallest_products(-queries, factors, NEAREST, sample)[1]
    lists, recall = faiss.extract_index_ivf(index), 0.0
    lists.nprobe = 1
    while True:
        found = torch.from_numpy(index.search(to_numpy(queries), candidates(NEAREST))[1])
        recall = float((exact[:, :, None] == found[:, None]).any(2).double().mean())
        if recall >= RECALL or lists.nprobe >= lists.nlist:
            return recall
        lists.nprobe = min(2 * lists.nprobe, lists.nlist)


def candidates(k: int) -> int:
    """How many images are looked at to find the ``k`` nearest, whose scores are computed anew."""
    return 2 * k + 10


def _numbers(rows: Tensor) -> np.ndarray:
    """Row numbers as faiss takes them."""
    return rows.cpu().numpy().astype(np.int64)
