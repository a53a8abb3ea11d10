"""Images to embed, in files whose rows have a fixed order: folders, tables, tars, Arrow."""

from __future__ import annotations

import glob
import hashlib
import json
import os
import re
import sys
import tarfile
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from torch import Tensor

from bgl._extras import extra
from bgl._io import read_json
from bgl.datasets.folder import PARTS
from bgl.datasets.table import read_table
from bgl.images.finding import files_of
from bgl.images.reading import IMAGE_SUFFIXES, decode_image
from bgl.models.encoder import Images

with extra("scale"):
    import pyarrow as pa
    import pyarrow.parquet as pq

LABEL = "label"  # column of an Arrow file
LABEL_SUFFIX = ".cls"  # member of a WebDataset tar
SPOOLED = 16  # rows of an Arrow file in memory


class Piece(NamedTuple):
    """Images with their keys, and their labels (None where there is none)."""

    keys: list[str]
    labels: list[str | None]
    images: Images


class Container(Protocol):
    """Images in a fixed order."""

    def __len__(self) -> int: ...

    def fingerprint(self) -> Iterable[str]:
        """Yield what it is recognised by, without reading it through."""

    def piece(self, start: int, stop: int) -> AbstractContextManager[Piece]:
        """Open the images from ``start`` to ``stop``."""


def open_containers(
    places: Sequence[str | Path], data_root: str | Path | None = None
) -> list[Container]:
    """Find what there is to embed.

    Args:
        places: Any of: folders and image files; CSV tables with the columns "path" and "label";
            WebDataset tars (``photos-{000..099}.tar``, ``photos-*.tar``); Parquet files with an
            image column; folders of a Hugging Face dataset that ``save_to_disk`` wrote.
        data_root: What the paths of tables are relative to; None: the table's folder.

    Raises:
        FileNotFoundError: If a place does not exist.
        ValueError: If one has no images.
    """
    if isinstance(places, (str, Path)):
        places = [places]
    files: dict[str, str | None] = {}
    containers: list[Container] = []
    for place in (found for pattern in places for found in _expand(str(pattern))):
        path = Path(place)
        suffix = path.suffix.lower()
        if suffix == ".tar":
            containers.append(Tar(os.path.abspath(place)))
        elif suffix == ".parquet":
            containers.append(Arrow(os.path.abspath(place)))
        elif suffix in (".csv", ".tsv"):
            for classes in read_table(path, data_root).parts.values():
                files |= {str(file): name for name in classes for file in classes[name]}
        elif saved := _saved_files(path):
            containers += map(Arrow, saved)
        else:
            found = files_of(path)
            for file, label in zip(found, _folder_labels(path, found), strict=True):
                files.setdefault(file, label)
    if files:
        containers.insert(0, Files(files))
    if not containers:
        raise ValueError("Expected argument `images` to be places with images, but got none")
    return containers


def listing_digest(containers: Iterable[Container]) -> str:
    """Compute a fingerprint of which images there are, in which order."""
    digest = hashlib.sha256()
    for container in containers:
        for line in container.fingerprint():
            digest.update(os.fsencode(line) + b"\0")
        digest.update(b"\0")
    return digest.hexdigest()


class Files:
    """Image files, each with its label or None; their keys are their absolute paths."""

    def __init__(self, files: dict[str, str | None]) -> None:
        self.paths = list(files)
        self.labels = list(files.values())

    def __len__(self) -> int:
        return len(self.paths)

    def fingerprint(self) -> Iterable[str]:
        for path, label in zip(self.paths, self.labels, strict=True):
            yield f"{path}\0{label}"

    @contextmanager
    def piece(self, start: int, stop: int) -> Iterator[Piece]:
        paths = self.paths[start:stop]
        keys = [os.fsencode(path).decode(errors="backslashreplace") for path in paths]
        yield Piece(keys, self.labels[start:stop], paths)


class _File:
    """A file with many images, recognised by its place and size."""

    def __init__(self, path: str) -> None:
        self.path = path

    def fingerprint(self) -> Iterable[str]:
        yield f"{self.path}\0{os.path.getsize(self.path)}"


class Tar(_File):
    """The images of an uncompressed tar; ``KEY.cls`` holds the label of ``KEY.jpg``.

    The key of an image is the path of the tar, a slash, and the image's name in it.
    """

    def __len__(self) -> int:
        return len(_index(self.path).names)

    @contextmanager
    def piece(self, start: int, stop: int) -> Iterator[Piece]:
        index = _index(self.path)
        names = index.names[start:stop]
        keys = [f"{self.path}/{name}" for name in names]
        labels = [index.labels.get(_sample(name)) for name in names]
        yield Piece(keys, labels, _Stored(self.path, keys, index.places[start:stop]))


class Arrow(_File):
    """The images of a Parquet file or Arrow stream as Hugging Face's ``datasets`` writes them.

    They are in the first column of structs with ``bytes`` and ``path``, or of bytes. The key of an
    image is the path of the file, a slash, and the row's number.
    """

    def __init__(self, path: str) -> None:
        super().__init__(path)
        schema = self._schema()
        kinds = {field.name: field.type for field in schema}
        images = [name for name, kind in kinds.items() if _holds_images(kind)]
        if not images:
            raise ValueError(
                f"Expected argument `images` to have a column of image files, but {path} has "
                f"{', '.join(f'{name} ({kind})' for name, kind in kinds.items())}"
            )
        self.image = images[0]
        self.columns = [self.image, *([LABEL] if LABEL in kinds else [])]
        about = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        self.names = about.get("info", {}).get("features", {}).get(LABEL, {}).get("names")

    def __len__(self) -> int:
        if self.path.endswith(".parquet"):
            return int(pq.read_metadata(self.path).num_rows)
        return sum(len(batch) for batch in self._batches(0))

    @contextmanager
    def piece(self, start: int, stop: int) -> Iterator[Piece]:
        """Copy the images into a temporary file, from where loading processes read them."""
        labels: list[str | None] = []
        sizes: list[int] = []
        with tempfile.TemporaryDirectory(prefix="bgl-") as folder:
            path = os.path.join(folder, "images")
            with open(path, "wb") as file:
                for images, names in self._rows(start, stop):
                    sizes += [file.write(_content(image)) for image in images]
                    labels += names
            places = np.stack([np.cumsum([0, *sizes[:-1]]), sizes], axis=1)
            keys = [f"{self.path}/{row}" for row in range(start, stop)]
            yield Piece(keys, labels, _Stored(path, keys, places))

    def _schema(self) -> Any:
        try:
            if self.path.endswith(".parquet"):
                return pq.read_schema(self.path)
            with pa.memory_map(self.path) as file:
                return pa.ipc.open_stream(file).schema
        except (ValueError, OSError) as error:
            raise ValueError(
                f"Expected {self.path} to be a Parquet or Arrow file, but {error}"
            ) from error

    def _rows(self, start: int, stop: int) -> Iterator[tuple[list[Any], list[str | None]]]:
        for batch in self._batches(start):
            batch = batch.slice(0, max(stop - start, 0))
            if not len(batch):
                return
            start += len(batch)
            for first in range(0, len(batch), SPOOLED):
                rows = batch.slice(first, SPOOLED).to_pylist()
                yield (
                    [row[self.image] for row in rows],
                    [self._label(row.get(LABEL)) for row in rows],
                )

    def _label(self, label: Any) -> str | None:
        if label is None:
            return None
        if self.names and isinstance(label, int):  # -1: not known
            return self.names[label] if 0 <= label < len(self.names) else None
        return str(label)

    def _batches(self, start: int) -> Iterator[Any]:
        """Yield the rows from ``start`` on, in batches; of the others nothing is decoded."""
        if self.path.endswith(".parquet"):
            with pq.ParquetFile(self.path, buffer_size=1 << 20, pre_buffer=False) as file:
                first = 0
                for group in range(file.num_row_groups):
                    rows = file.metadata.row_group(group).num_rows
                    if start < first + rows:
                        for batch in file.iter_batches(SPOOLED, [group], self.columns):
                            if start < first + len(batch):
                                yield batch.slice(max(start - first, 0))
                            first += len(batch)
                    else:
                        first += rows
            return
        with pa.memory_map(self.path) as file:
            first = 0
            for batch in pa.ipc.open_stream(file):
                if start < first + len(batch):
                    yield batch.select(self.columns).slice(max(start - first, 0))
                first += len(batch)


@dataclass(frozen=True)
class _Stored:
    """Image files inside another one, by the place and size [N, 2] of each."""

    file: str
    names: Sequence[str]
    places: np.ndarray

    def __len__(self) -> int:
        return len(self.places)

    def read(self, index: int, min_side: int | None = None, /) -> Tensor:
        offset, size = self.places[index].tolist()
        with open(self.file, "rb") as file:
            file.seek(offset)
            return decode_image(file.read(size), min_side, self.names[index])


class _Index(NamedTuple):
    names: list[str]
    places: np.ndarray  # [N, 2]
    labels: dict[str, str]  # by the key of the sample


@lru_cache(maxsize=1)  # pieces of one tar are mostly opened one after another
def _index(path: str) -> _Index:
    """Find the images of a tar; only the headers are read."""
    names, places, labels = [], [], {}
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                suffix = os.path.splitext(member.name)[1].lower()
                if member.isreg() and suffix in IMAGE_SUFFIXES:
                    names.append(os.fsencode(member.name).decode(errors="backslashreplace"))
                    places.append((member.offset_data, member.size))
                elif suffix == LABEL_SUFFIX and (label := tar.extractfile(member)):
                    labels[_sample(member.name)] = label.read().decode(errors="replace").strip()
                tar.members = []  # type: ignore[attr-defined]  # a kilobyte each
        with open(path, "rb") as file:
            file.seek(tar.offset)
            if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise tarfile.ReadError("it is cut off")  # which tarfile passes over
    except tarfile.TarError as error:
        raise ValueError(
            f"Expected argument `images` to be whole, uncompressed tars, but got {path}: {error}"
        ) from error
    if not names:
        raise ValueError(f"Expected argument `images` to be tars with images, but {path} has none")
    return _Index(names, np.array(places), labels)


def _sample(name: str) -> str:
    """Return the key of a sample of WebDataset: up to the first dot of the file's name."""
    folder, slash, file = name.rpartition("/")
    return folder + slash + file.partition(".")[0]


def _expand(pattern: str) -> list[str]:
    """Expand ``{000..099}``, ``{a,b}``, ``*`` and ``?``; what exists under that name is taken."""
    if os.path.exists(pattern):
        return [pattern]
    if found := re.search(r"\{(?:(\d+)\.\.(\d+)|([^{}]*,[^{}]*))\}", pattern):
        first, last, words = found.groups()
        inner = words.split(",") if words else _range(first, last)
        before, after = pattern[: found.start()], pattern[found.end() :]
        return [place for word in inner for place in _expand(f"{before}{word}{after}")]
    return sorted(glob.glob(pattern, recursive=True)) or [pattern]


def _range(first: str, last: str) -> list[str]:
    return [f"{number:0{len(first)}d}" for number in range(int(first), int(last) + 1)]


def _folder_labels(place: Path, files: Sequence[str]) -> Iterator[str | None]:
    """Yield the class folder of each file, which ``--dataset folder`` would find, or None."""
    root = os.path.join(str(place.absolute()), "")
    split = place.is_dir() and any(
        entry.name.lower() in PARTS["train"] and entry.is_dir() for entry in os.scandir(place)
    )
    parts = {name for names in PARTS.values() for name in names}
    for file in files:
        folders = file.removeprefix(root).split(os.sep)[:-1] if place.is_dir() else []
        if split and folders and folders[0].lower() in parts:
            folders = folders[1:]
        yield sys.intern(folders[0]) if folders else None


def _saved_files(folder: Path) -> list[str]:
    """List the files of a Hugging Face dataset that ``save_to_disk`` wrote; none if it is none."""
    if (folder / "dataset_dict.json").is_file():
        splits = read_json(folder / "dataset_dict.json")["splits"]
        return [file for split in splits for file in _saved_files(folder / split)]
    if not (folder / "state.json").is_file():
        return []
    state = read_json(folder / "state.json")
    files = state.get("_data_files", []) if isinstance(state, dict) else []  # may be anybody's
    return [os.path.abspath(folder / file["filename"]) for file in files]


def _holds_images(kind: Any) -> bool:
    if pa.types.is_struct(kind):
        return {"bytes", "path"} <= {kind.field(i).name for i in range(kind.num_fields)}
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _content(image: Any) -> bytes:
    """Return the bytes of an image file; none, which nothing decodes, where there is none."""
    content = image.get("bytes") if isinstance(image, dict) else image
    if content is None and isinstance(image, dict) and image.get("path"):
        try:
            return Path(image["path"]).read_bytes()
        except OSError:
            return b""
    return content or b""
