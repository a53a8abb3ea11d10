"""Embeddings of very many images: made in shards, by as many processes as there are, and read.

Needs ``pip install bgl[scale]``. On the command line: ``bgl embed --help``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bgl._lazy import lazily

if TYPE_CHECKING:
    from bgl.embedding.embedder import Embedder
    from bgl.embedding.job import embed
    from bgl.embedding.shards import Block, Manifest, ShardFolder, write_manifest, write_shard

__all__ = [
    "Block",
    "Embedder",
    "Manifest",
    "ShardFolder",
    "embed",
    "write_manifest",
    "write_shard",
]

__getattr__ = lazily(
    __name__,
    {
        "bgl.embedding.embedder": ["Embedder"],
        "bgl.embedding.job": ["embed"],
        "bgl.embedding.shards": [
            "Block",
            "Manifest",
            "ShardFolder",
            "write_manifest",
            "write_shard",
        ],
    },
)
