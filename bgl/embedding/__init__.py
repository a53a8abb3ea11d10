"""Embeddings of very many images: made in shards, by as many processes as there are, and read.

Needs ``pip install bgl[scale]``. On the command line: ``bgl embed --help``.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

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

# Imported when they are asked for: the command line is slow to start otherwise.
_HOMES = {
    "Block": "shards",
    "Embedder": "embedder",
    "Manifest": "shards",
    "ShardFolder": "shards",
    "embed": "job",
    "write_manifest": "shards",
    "write_shard": "shards",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"bgl.embedding.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
