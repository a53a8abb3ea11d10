"""Milvus as a store: its embedded Lite in a file, or a cluster at an address."""

from __future__ import annotations

import hashlib
import json
import secrets
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bgl._checks import check_finite
from bgl._extras import extra
from bgl.embedding.about import About
from bgl.search.store import MILVUS, Rows

with extra("milvus"):
    from pymilvus import DataType, MilvusClient, MilvusException

ALIAS = "bgl"  # the name of the collection that holds the index
_ABOUT = "bgl.about"  # the property of a collection that says whose vectors it holds
_TEXT_BYTES = 65535  # of a path or label at most: the longest that Milvus takes
_REQUEST_BYTES = 2**24  # of vectors in a request: well below the 64 MiB that a server takes
_MOST_FOUND = 16384  # images for a query at most: Milvus finds no more
_REQUESTED = 1024  # images looked up or removed by a request
_FIELDS = ["key", "label", "vector"]


class MilvusStore:
    """Keep an index in a collection of Milvus, for embeddings that are compared by cosine.

    Vectors are stored in float32, and found by the index that Milvus chooses (``AUTOINDEX``).
    Every change is visible once it is made. A new index is a collection of its own, which the
    name ``bgl`` is given to when it is complete.

    Args:
        address: ``milvus:FILE.db`` or ``milvus:http://HOST:PORT``.

    Raises:
        FileNotFoundError: If there is no index.
        ValueError: If the collection is no index.
        OSError: If the server cannot be reached.
    """

    about: About

    def __init__(self, address: str) -> None:
        self._client = _connect(address)
        if not self._client.has_collection(ALIAS):
            raise FileNotFoundError(
                f"Expected argument `store` to hold an index (a collection {ALIAS!r}), but found "
                f"none: {address}: build it"
            )
        said = self._client.describe_collection(ALIAS)["properties"].get(_ABOUT)
        try:
            self.about = About(**json.loads(said))
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"Expected the collection {ALIAS!r} of {address} to be an index, but got "
                f"{error}: build the index again"
            ) from error
        self._client.load_collection(ALIAS)

    @classmethod
    def create(cls, address: str, about: About, rows: Iterable[Rows]) -> MilvusStore:
        """Write a new index (see :func:`bgl.search.store.create_store`)."""
        if about.curvature is not None:
            raise ValueError(
                f"Expected argument `store` to be a folder for hyperbolic embeddings, got "
                f"{address}, which compares by cosine: pass a folder, or output='backbone'"
            )
        client = _connect(address)
        name, old = f"{ALIAS}_{secrets.token_hex(4)}", _collection(client)
        schema = MilvusClient.create_schema(auto_id=False)
        schema.add_field("id", DataType.VARCHAR, is_primary=True, max_length=64)
        schema.add_field("key", DataType.VARCHAR, max_length=_TEXT_BYTES)
        schema.add_field("label", DataType.VARCHAR, max_length=_TEXT_BYTES)
        schema.add_field("vector", DataType.FLOAT_VECTOR, dim=about.dim)
        index = MilvusClient.prepare_index_params()
        index.add_index("vector", index_type="AUTOINDEX", metric_type="COSINE")
        client.create_collection(
            name,
            schema=schema,
            index_params=index,
            consistency_level="Strong",
            properties={_ABOUT: json.dumps(asdict(about))},
        )
        try:
            if _put(client, name, rows) == 0:
                raise ValueError("Expected an index of at least one image, but got none")
            client.flush(name)  # what was written is searched slowly until then
            if old is None:
                client.create_alias(name, ALIAS)
            else:
                client.alter_alias(name, ALIAS)
        except BaseException:  # an interruption too leaves nothing behind
            client.drop_collection(name)
            raise
        if old is not None:
            client.drop_collection(old)
        return cls(address)

    @property
    def engine(self) -> str:
        """Say what finds the nearest."""
        return "Milvus"

    def search(self, x: Tensor, count: int, label: str | None) -> list[Rows]:
        """Find candidates (see :class:`bgl.search.store.Store`)."""
        limit = min(count, _MOST_FOUND)
        # at most as much is answered at once as is asked
        step = max(1, _REQUEST_BYTES // (4 * self.about.dim * limit))
        rows: list[Rows] = []
        for part in x.float().split(step):
            found = self._client.search(
                ALIAS,
                data=list(part.numpy()),
                limit=limit,
                filter="" if label is None else f"label == {json.dumps(label, ensure_ascii=False)}",
                output_fields=_FIELDS,
            )
            rows += [self._rows([hit["entity"] for hit in hits]) for hits in found]
        return rows

    def find(self, keys: Sequence[str]) -> Rows:
        """Look up images; those that are not there are left out."""
        by_key: dict[str, Any] = {}
        for first in range(0, len(keys), _REQUESTED):
            ids = [_id(key) for key in keys[first : first + _REQUESTED]]
            found = self._client.get(ALIAS, ids=ids, output_fields=_FIELDS)
            by_key |= {row["key"]: row for row in found}
        return self._rows([by_key[key] for key in keys if key in by_key])

    def change(self, rows: Iterable[Rows] = (), removed: Sequence[str] = ()) -> None:
        """Remove images, and put others in the place of those with the same keys."""
        said = json.loads(self._client.describe_collection(ALIAS)["properties"][_ABOUT])
        if (said["model"], said["output"]) != (self.about.model, self.about.output):
            raise ValueError(
                "Expected the index to be the one that was opened, but it was built anew with "
                "another model since: open it again"
            )
        if removed:
            if len(self.find(removed).keys) >= len(self):
                raise ValueError("Expected an index of at least one image, but none would be left")
            for first in range(0, len(removed), _REQUESTED):
                ids = [_id(key) for key in removed[first : first + _REQUESTED]]
                self._client.delete(ALIAS, ids=ids)
        _put(self._client, ALIAS, rows)

    def __len__(self) -> int:
        count = self._client.query(ALIAS, output_fields=["count(*)"])
        return int(count[0]["count(*)"])

    def _rows(self, found: Sequence[Any]) -> Rows:
        vectors = np.array([row["vector"] for row in found], dtype=np.float32)
        return Rows(
            [row["key"] for row in found],
            [row["label"] for row in found],
            torch.from_numpy(vectors.reshape(len(found), self.about.dim)),
        )


def _connect(address: str) -> MilvusClient:
    index = getattr(sys.modules.get("faiss"), "IndexHNSW", None)
    if "://" not in address and hasattr(index, "search_numpy"):
        raise ValueError(
            "Expected a process without pytorch_metric_learning.utils.inference for the `store` "
            f"{address}, but it has replaced the search of faiss, which Milvus Lite needs: use a "
            "folder or a server, or search in a process of its own"
        )
    try:
        return MilvusClient(address.removeprefix(MILVUS))
    except MilvusException as error:
        raise ConnectionError(
            f"Expected argument `store` to be the address of Milvus, but {address} cannot be "
            f"opened ({error.message}): start the server, or end the other process that uses the "
            "file"
        ) from error


def _collection(client: MilvusClient) -> str | None:
    """The name of the collection that is the index now."""
    if not client.has_collection(ALIAS):
        return None
    return str(client.describe_alias(ALIAS)["collection_name"])


def _put(client: MilvusClient, name: str, rows: Iterable[Rows]) -> int:
    """Write rows into a collection; return how many."""
    count = 0
    for part in rows:
        check_finite(part.vectors, "the embeddings")
        vectors = part.vectors.float().numpy()
        step = max(1, _REQUEST_BYTES // (4 * vectors.shape[1]))
        for first in range(0, len(part.keys), step):
            end = min(first + step, len(part.keys))
            client.upsert(
                name,
                [
                    {
                        "id": _id(part.keys[i]),
                        "key": part.keys[i],
                        "label": part.labels[i],
                        "vector": vectors[i],
                    }
                    for i in range(first, end)
                ],
            )
        count += len(part.keys)
    return count


def _id(key: str) -> str:
    """The primary key of an image: a path may be long, and hold any character."""
    return hashlib.sha256(key.encode()).hexdigest()
