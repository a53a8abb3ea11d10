"""The default store: one file in a folder, mapped into memory."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.nn.functional import normalize

from bgl._checks import check_device, check_finite, describe
from bgl._io import atomic_path
from bgl._neighbors import Converted, exact_search, to_numpy
from bgl.embedding.about import About
from bgl.hyperbolic import rank_factors
from bgl.search import approximate
from bgl.search.store import Rows

INDEX_FILE = "index.safetensors"
_LOCK_FILE = ".index.lock"  # whoever changes the index holds it
_HEADER = 2**16  # bytes kept free for the header, which is known when all else is written
_READ_ROWS = 2**14  # vectors read, checked and written at a time


class FolderStore:
    """Keep an index in one file of a folder, which every change replaces atomically.

    Vectors are compared exactly, on a device. Where there are very many, a faiss index finds the
    candidates, if faiss is installed (:mod:`bgl.search.approximate`).

    Args:
        folder: Where the index is.
        device: Where vectors are compared exactly.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If its file is damaged.
    """

    about: About

    def __init__(self, folder: str | Path, device: str | torch.device = "cpu") -> None:
        self.folder, self.device = Path(folder), check_device(device)
        path = self.folder / INDEX_FILE
        if not path.is_file():
            raise FileNotFoundError(
                f"Expected argument `store` to be a folder with an index ({INDEX_FILE}), but "
                f"found none: {folder}: build it, or pass the folder it is in"
            )
        self._read(path)

    @classmethod
    def create(
        cls,
        folder: str | Path,
        about: About,
        rows: Iterable[Rows],
        device: str | torch.device = "cpu",
    ) -> FolderStore:
        """Write a new index (see :func:`bgl.search.store.create_store`)."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / _LOCK_FILE):
            _write(folder / INDEX_FILE, about, rows)
        return cls(folder, device)

    @property
    def engine(self) -> str:
        """Say how the nearest are found."""
        if self._faiss is not None:
            return (
                f"faiss {self._kind}, {self._index.nprobe} lists looked at: "
                f"recall@{approximate.NEAREST} {self._recall:.3f} against an exact search"
            )
        if approximate.factory(len(self), self.about.dim):
            return "an exact search; faster with faiss: pip install 'bgl[search]', and build again"
        return "an exact search"

    def search(self, x: Tensor, count: int, label: str | None) -> list[Rows]:
        """Find candidates (see :class:`bgl.search.store.Store`); by label always exactly."""
        asked = query_factors(x, self.about.curvature)
        if label is not None:
            among = self._labelled(label)
            if len(among) == 0:
                return [self._rows([])] * len(x)
            entries = self._converted(self.vectors[among], entry_factors)
            found = among[exact_search(asked.to(self.device), entries, count).cpu()]
        elif self._faiss is not None:
            count = min(count, len(self))
            found = torch.from_numpy(self._index.search(to_numpy(asked), count)[1])
        else:
            found = exact_search(asked.to(self.device), self._entries, count).cpu()
        return [self._rows(row[row >= 0].tolist()) for row in found]

    def find(self, keys: Sequence[str]) -> Rows:
        """Look up images; those that are not there are left out."""
        return self._rows([self._place[key] for key in keys if key in self._place])

    def change(self, rows: Iterable[Rows] = (), removed: Sequence[str] = ()) -> None:
        """Remove images, and put others in the place of those with the same keys."""
        path = self.folder / INDEX_FILE
        added = list(rows)
        with FileLock(self.folder / _LOCK_FILE):
            self._read(path)  # another process may have changed it
            gone = {*removed, *(key for part in added for key in part.keys)}
            kept = torch.tensor([key not in gone for key in self._keys])
            index = None if self._faiss is None else self._index
            if self._faiss is not None and index is not None and not kept.all():
                approximate.remove(self._faiss, index, kept)
            try:
                _write(path, self.about, chain(self._parts(kept), added), self._kind, index)
            finally:  # also after an error: rows were taken out of the faiss index in memory
                self._read(path)

    def __len__(self) -> int:
        return len(self._keys)

    def _rows(self, places: list[int]) -> Rows:
        vectors = self.vectors[torch.tensor(places, dtype=torch.long)]
        return Rows([self._keys[i] for i in places], [self._labels[i] for i in places], vectors)

    def _parts(self, kept: Tensor) -> Iterator[Rows]:
        for part in kept.nonzero().flatten().split(_READ_ROWS):
            yield self._rows(part.tolist())

    def _labelled(self, label: str) -> Tensor:
        return torch.tensor([i for i, own in enumerate(self._labels) if own == label]).long()

    def _converted(self, vectors: Tensor, factors: Any) -> Converted:
        return Converted(vectors, lambda x: factors(x, self.about.curvature), self.device)

    def _read(self, path: Path) -> None:
        """Map the index file, and check that its parts belong together."""
        try:
            with safe_open(path, "pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                said = json.loads(file.metadata()["index"])
            digest, kind, recall = (said.pop(name) for name in ("digest", "kind", "recall"))
            about = About(**said)
            opened = getattr(self, "about", about)
            if (about.model, about.output) != (opened.model, opened.output):
                raise ValueError("it was built anew with another model since it was opened")
            self.about, self._kind, self._recall = about, kind, recall
            self._keys, self._labels = (_texts(tensors[name]) for name in ("keys", "labels"))
            self.vectors = tensors["embeddings"]
            if os.name == "nt":  # which replaces no file that is mapped
                self.vectors = self.vectors.clone()
            if not self._keys:
                raise ValueError("there are no images")
            shape = (len(self._keys), self.about.dim)
            if self.vectors.dtype != torch.float32 or self.vectors.shape != shape:
                raise ValueError(f"{len(self._keys)} images have {describe(self.vectors)}")
            if len(self._labels) != len(self._keys):
                raise ValueError(f"{len(self._keys)} images have {len(self._labels)} labels")
            if _digest(self.vectors) != digest:
                raise ValueError("the embeddings are not those that were written")
            self._faiss = approximate.faiss_or_none() if self._kind else None
            if self._faiss is not None:
                self._index = self._faiss.deserialize_index(tensors["faiss"].numpy())
                if self._index.ntotal != len(self._keys):
                    raise ValueError(f"faiss has {self._index.ntotal} of {len(self._keys)} images")
        # faiss raises RuntimeError
        except (SafetensorError, ValueError, TypeError, KeyError, RuntimeError) as error:
            raise ValueError(
                f"Expected {path} to be a whole index of this version, but got "
                f"{type(error).__name__}: {error}: build the index again"
            ) from error
        self._place = {key: i for i, key in enumerate(self._keys)}
        self._entries: Tensor | Converted = self._converted(self.vectors, entry_factors)
        if not approximate.factory(*shape):  # small enough to be kept
            self._entries = self._entries[:]


def entry_factors(x: Tensor, curvature: float | None) -> Tensor:
    """Factors [N, W] of images: the nearest have the largest products with those of a query."""
    return normalize(x.float()) if curvature is None else rank_factors(x.float(), c=curvature)[1]


def query_factors(x: Tensor, curvature: float | None) -> Tensor:
    """Factors [Q, W] of queries."""
    return normalize(x.float()) if curvature is None else -rank_factors(x.float(), c=curvature)[0]


def _write(
    path: Path, about: About, rows: Iterable[Rows], kind: str = "", index: Any = None
) -> None:
    """Write an index file, a part of the rows at a time.

    ``index``, of a ``kind``, has the first of them already.
    """
    keys: list[str] = []
    labels: list[str] = []
    digest = hashlib.sha256()
    with atomic_path(path) as temporary, temporary.open("r+b") as file:
        file.seek(_HEADER)
        for part in rows:
            check_finite(part.vectors, "the embeddings")
            content = part.vectors.float().contiguous().numpy().tobytes()
            digest.update(content)
            file.write(content)
            keys += part.keys
            labels += part.labels
        _check_keys(keys)
        file.flush()
        shape = (len(keys), about.dim)
        vectors = torch.from_numpy(np.memmap(temporary, np.float32, "c", _HEADER, shape))
        kind, recall, content = _approximate(vectors, about, kind, index)
        parts = [_text_bytes(keys), _text_bytes(labels), content]
        said = {"digest": digest.hexdigest(), "kind": kind, "recall": recall, **asdict(about)}
        header = _header(said, shape, parts)
        del vectors  # Windows renames no file that is mapped
        for part_bytes in parts:
            file.write(part_bytes)
        file.seek(0)
        file.write(header)


def _approximate(vectors: Tensor, about: About, kind: str, index: Any) -> tuple[str, float, bytes]:
    """Make or complete the faiss index of some vectors, where there are enough of them."""
    wanted = approximate.factory(len(vectors), about.dim)
    faiss = approximate.faiss_or_none()
    if not wanted or faiss is None:
        return "", 1.0, b""
    factors, asked = (
        Converted(vectors, lambda x, make=make: make(x, about.curvature))  # type: ignore[misc]
        for make in (entry_factors, query_factors)
    )
    if index is None or kind != wanted:
        index = approximate.build(faiss, wanted, factors)
    approximate.add(index, factors)
    recall = approximate.tune(faiss, index, factors, asked)
    return wanted, recall, faiss.serialize_index(index).tobytes()


def _check_keys(keys: list[str]) -> None:
    if not keys:
        raise ValueError("Expected an index of at least one image, but none would be left")
    if len(set(keys)) < len(keys):
        seen: set[str] = set()
        twice = next(key for key in keys if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"Expected every image of an index once, but got {twice} twice")


def _header(said: dict[str, Any], shape: tuple[int, int], parts: list[bytes]) -> bytes:
    """The beginning of a safetensors file: the length of a JSON text, and that, filled up."""
    tensors: dict[str, Any] = {"__metadata__": {"index": json.dumps(said)}}
    end = 4 * shape[0] * shape[1]
    tensors["embeddings"] = {"dtype": "F32", "shape": shape, "data_offsets": [0, end]}
    for name, content in zip(("keys", "labels", "faiss"), parts, strict=True):
        offsets = [end, end + len(content)]
        tensors[name] = {"dtype": "U8", "shape": [len(content)], "data_offsets": offsets}
        end = offsets[1]
    text = json.dumps(tensors).encode()
    return (_HEADER - 8).to_bytes(8, "little") + text.ljust(_HEADER - 8)


def _text_bytes(texts: list[str]) -> bytes:
    return json.dumps(texts).encode()


def _texts(content: Tensor) -> list[str]:
    texts = json.loads(content.numpy().tobytes())
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise TypeError("`keys` or `labels` is no list of texts")
    return texts


def _digest(vectors: Tensor) -> str:
    digest = hashlib.sha256()
    for part in vectors.split(_READ_ROWS):
        digest.update(part.numpy().tobytes())
    return digest.hexdigest()
