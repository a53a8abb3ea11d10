"""What an index of embedded images asks of the place that holds it, and the places by address."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from bgl.embedding.about import About

MILVUS = "milvus:"  # begins the address of a Milvus store


class Rows(NamedTuple):
    """Some images of an index: keys (paths), labels ("" for none), vectors [n, D] in float32."""

    keys: list[str]
    labels: list[str]
    vectors: Tensor


class Store(Protocol):
    """A place that holds an index, and finds candidates for what is nearest in it."""

    about: About

    @property
    def engine(self) -> str:
        """What finds the nearest, in words for the user."""
        ...

    def search(self, x: Tensor, count: int, label: str | None) -> list[Rows]:
        """Find some ``count`` images for each row of x [Q, D], the likely nearest first."""
        ...

    def find(self, keys: Sequence[str]) -> Rows:
        """Look up images; those that are not there are left out."""
        ...

    def change(self, rows: Iterable[Rows] = (), removed: Sequence[str] = ()) -> None:
        """Remove images, and put others in the place of those with the same keys."""
        ...

    def __len__(self) -> int:
        """Return the number of images."""
        ...


def create_store(
    address: str | Path, about: About, rows: Iterable[Rows], device: str | torch.device = "cpu"
) -> Store:
    """Write a new index in the place of the one at an address, if there is one.

    Args:
        address: A folder, ``milvus:FILE.db`` or ``milvus:http://HOST:PORT``.
        about: Whose vectors these are.
        rows: The images, a part at a time.
        device: Where a folder's vectors are compared.

    Raises:
        ImportError: If a package is missing.
        ValueError: If there are no images, a key comes twice, or the store cannot compare them.
        OSError: If the store cannot be written or reached.
    """
    if str(address).startswith(MILVUS):
        from bgl.search.milvus import MilvusStore

        return MilvusStore.create(str(address), about, rows)
    from bgl.search.folder import FolderStore

    return FolderStore.create(address, about, rows, device)


def open_store(address: str | Path, device: str | torch.device = "cpu") -> Store:
    """Open the index at an address.

    Raises:
        ImportError: If a package is missing.
        FileNotFoundError: If there is no index.
        ValueError: If it is damaged.
        OSError: If the store cannot be reached.
    """
    if str(address).startswith(MILVUS):
        from bgl.search.milvus import MilvusStore

        return MilvusStore(str(address))
    from bgl.search.folder import FolderStore

    return FolderStore(address, device)
