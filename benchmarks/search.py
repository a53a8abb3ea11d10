"""Time and recall of a search store: ``python benchmarks/search.py --count 100000 --store DIR``.

The vectors are drawn in clusters of fifty, about as far apart as the classes of a trained model;
queries are further members of the clusters. Recall is told against an exact search in float64.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Iterator

import torch
from torch.nn.functional import normalize

from bgl._memory import peak_memory_mb
from bgl.embedding.about import About
from bgl.search.approximate import NEAREST, candidates
from bgl.search.store import Rows, create_store

BLOCK = 2**14


def main() -> None:
    """Build an index in a store and ask it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--queries", type=int, default=100)
    parser.add_argument("--store", required=True, help="Address, as bgl search takes it.")
    options = parser.parse_args()

    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(max(1, options.count // 50), options.dim, generator=generator)

    def members(first: int, count: int) -> torch.Tensor:
        noise = torch.randn(count, options.dim, generator=torch.Generator().manual_seed(first + 1))
        return centres[torch.arange(first, first + count) % len(centres)] + noise

    def rows() -> Iterator[Rows]:
        for first in range(0, options.count, BLOCK):
            x = members(first, min(BLOCK, options.count - first))
            keys = [f"{i}.jpg" for i in range(first, first + len(x))]
            yield Rows(keys, [str(i % len(centres)) for i in range(first, first + len(x))], x)

    start = time.perf_counter()
    store = create_store(options.store, About("", "", "head", None, options.dim), rows())
    built = time.perf_counter() - start
    queries = members(options.count, options.queries)

    best = torch.full((options.queries, NEAREST), -2.0, dtype=torch.float64)
    keys = torch.zeros(options.queries, NEAREST, dtype=torch.long)
    for first in range(0, options.count, BLOCK):
        x = members(first, min(BLOCK, options.count - first))
        scores = torch.cat([best, normalize(queries.double()) @ normalize(x.double()).T], dim=1)
        places = torch.arange(first, first + len(x)).expand(options.queries, -1)
        best, order = scores.topk(NEAREST, dim=1)
        keys = torch.cat([keys, places], dim=1).gather(1, order)

    seconds, known = [], 0
    for query, exact in zip(queries, keys.tolist(), strict=True):
        start = time.perf_counter()
        found = store.search(query[None], candidates(NEAREST), None)[0]
        seconds.append(time.perf_counter() - start)
        known += len({f"{i}.jpg" for i in exact} & set(found.keys))
    figures = {
        "store": options.store.partition(":")[0] if ":" in options.store else "folder",
        "engine": store.engine,
        "count": len(store),
        "dim": options.dim,
        "build_s": round(built, 1),
        f"recall@{NEAREST}": known / (NEAREST * options.queries),
        "query_ms_median": round(1000 * statistics.median(seconds), 2),
        "query_ms_fastest": round(1000 * min(seconds), 2),
        "peak_mb": round(peak_memory_mb()),
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
