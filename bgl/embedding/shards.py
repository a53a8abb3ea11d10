"""Embeddings on disk: a folder of Parquet files and a manifest that says what is in them.

``part-00000.parquet``, ``part-00001.parquet``, … have three columns: ``key`` (text that names the
image), ``label`` (text, or null) and ``vector`` (a list of fixed size, of float16 or float32).
``manifest.json`` is written last: a folder that has it is complete. ``skipped.csv`` lists the
images that could not be read.
"""

from __future__ import annotations

import csv
import dataclasses
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from bgl._checks import check_choice, check_int, describe
from bgl._extras import extra
from bgl._io import atomic_path, write_text
from bgl._records import read_record
from bgl.embedding.about import About

with extra("scale"):
    import pyarrow as pa
    import pyarrow.parquet as pq

MANIFEST_FILE = "manifest.json"
SKIPPED_FILE = "skipped.csv"
FORMAT = 1
DTYPES = ("float16", "float32")
ROW_GROUP = 4096  # rows that are read at a time: 6 MB of 384 columns in float32
SKIPPED = b"bgl.skipped"  # metadata of a shard: the images that it left out, and why

Skipped = tuple[str, str]  # the key of an image that could not be read, and the reason


class Block(NamedTuple):
    """Consecutive rows of a folder: keys, labels (None where there is none), vectors [n, D]."""

    keys: list[str]
    labels: list[str | None]
    vectors: np.ndarray


@dataclass(frozen=True)
class Manifest(About):
    """What is in a folder of embeddings.

    Attributes:
        run, model, output, curvature, dim: Whose they are.
        dtype: "float16" or "float32".
        count: Number of vectors.
        skipped: Number of images that could not be read.
        shards: Number of vectors of each shard, in order, by the name of its file.
        format: Of the folder; a later one may not be readable.
    """

    dtype: str = "float32"
    count: int = 0
    skipped: int = 0
    shards: dict[str, int] = dataclasses.field(default_factory=dict)
    format: int = FORMAT

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice(self.dtype, "dtype", DTYPES)
        if self.format != FORMAT:
            raise ValueError(f"this version reads format {FORMAT} only")
        if sum(self.shards.values()) != self.count:
            raise ValueError("the shards do not add up")


class ShardFolder:
    """Read a folder of embeddings, a block of rows at a time.

    Args:
        folder: Where :func:`bgl.embed` wrote them.

    Raises:
        FileNotFoundError: If it has no manifest: not all shards are written.
        ValueError: If the manifest or a shard is damaged.

    Example:
        >>> import tempfile
        >>> about = Manifest("runs/x", "0" * 64, "head", None, dim=2, dtype="float32")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for part, keys in enumerate(["ab", "c"]):
        ...         rows = Block(list(keys), [None] * len(keys), np.ones((len(keys), 2), "float32"))
        ...         write_shard(folder, part, rows)
        ...     shards = write_manifest(folder, about, parts=2)
        ...     [(block.keys, block.vectors.shape) for block in shards.blocks()]
        [(['a', 'b'], (2, 2)), (['c'], (1, 2))]
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        path = self.folder / MANIFEST_FILE
        if not path.is_file():
            raise FileNotFoundError(
                f"Expected argument `folder` to hold finished embeddings ({MANIFEST_FILE}), but "
                f"found none: {folder}: let bgl embed finish, or pass the folder that it wrote"
            )
        self.manifest = read_record(path, Manifest, "remove it and run bgl embed again")

    def __len__(self) -> int:
        return self.manifest.count

    def __repr__(self) -> str:
        about = self.manifest
        return f"{type(self).__name__}({len(self)} x {about.dim}, {about.dtype}, {self.folder})"

    def blocks(
        self, start: int = 0, stop: int | None = None, columns: Sequence[str] = Block._fields
    ) -> Iterator[Block]:
        """Read the rows from ``start`` to ``stop`` in order, at most some thousands at a time.

        Args:
            start: First row.
            stop: The row after the last; None: to the end.
            columns: Which of "keys", "labels" and "vectors" to read; the others are empty.

        Raises:
            ValueError: If a shard is missing, damaged or not as the manifest says.
        """
        stop = len(self) if stop is None else min(stop, len(self))
        check_int(start, "start", 0)
        first = 0
        for name, count in self.manifest.shards.items():
            if first < stop and start < first + count:
                yield from self._shard(name, max(start - first, 0), stop - first, columns)
            first += count

    def vectors(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Read the vectors [stop - start, D] of some rows into memory."""
        parts = [block.vectors for block in self.blocks(start, stop, ["vectors"])]
        return np.concatenate([np.empty((0, self.manifest.dim), self.manifest.dtype), *parts])

    def write_npy(self, path: str | Path) -> np.memmap:
        """Copy the vectors into a NumPy file and map it: for whoever reads them again and again.

        Raises:
            ValueError: As :meth:`blocks`.
            OSError: If the file cannot be written.
        """
        shape = (len(self), self.manifest.dim)
        with atomic_path(path) as temporary:
            array = np.lib.format.open_memmap(temporary, "w+", self.manifest.dtype, shape)
            first = 0
            for block in self.blocks(columns=["vectors"]):
                array[first : first + len(block.vectors)] = block.vectors
                first += len(block.vectors)
            array.flush()
            del array  # Windows renames no file that is mapped
        return np.lib.format.open_memmap(path, "c")  # writable, for torch, but not the file

    def skipped(self) -> Iterator[Skipped]:
        """Read the keys of the images that could not be read, and the reasons."""
        with (self.folder / SKIPPED_FILE).open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                yield row["key"], row["reason"]

    def _shard(self, name: str, start: int, stop: int, columns: Sequence[str]) -> Iterator[Block]:
        path, about, count = self.folder / name, self.manifest, self.manifest.shards[name]
        names = [check_choice(column, "columns", Block._fields)[:-1] for column in columns]
        try:
            with pq.ParquetFile(path) as file:
                if file.metadata.num_rows != count:
                    raise ValueError(f"it has {file.metadata.num_rows} rows, not {count}")
                first = 0
                for group in range(file.num_row_groups):
                    rows = file.metadata.row_group(group).num_rows
                    if first < stop and start < first + rows:
                        table = file.read_row_group(group, columns=names)
                        table = table.slice(max(start - first, 0))
                        yield _block(table.slice(0, stop - max(first, start)), about)
                    first += rows
        except (ValueError, OSError, KeyError) as error:  # Arrow's own errors are kinds of these
            raise ValueError(
                f"Expected {path} to be a whole shard, but {type(error).__name__}: {error}: remove "
                f"it and {MANIFEST_FILE}, and run bgl embed again"
            ) from error


def shard_name(part: int) -> str:
    """Return the name of a shard's file."""
    return f"part-{part:05d}.parquet"


def write_shard(
    folder: str | Path, part: int, rows: Block, skipped: Sequence[Skipped] = ()
) -> None:
    """Write a shard atomically.

    Args:
        folder: Where to.
        part: Its number, from 0.
        rows: What is in it; vectors in float16 or float32.
        skipped: The images that it would have if they could be read.

    Raises:
        ValueError: If vectors are of another kind.
        OSError: If the file cannot be written.
    """
    vectors = rows.vectors
    if vectors.ndim != 2 or vectors.dtype.name not in DTYPES:
        raise ValueError(
            "Expected argument `rows` to have vectors [n, D] in float16 or float32, but got "
            f"{describe(vectors)}"
        )
    flat = pa.array(np.ascontiguousarray(vectors).reshape(-1))
    table = pa.table(
        {
            "key": pa.array(map(_text, rows.keys), pa.string()),
            "label": pa.array(map(_text, rows.labels), pa.string()),
            "vector": pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1]),
        }
    ).replace_schema_metadata({SKIPPED: json.dumps(list(skipped))})
    with atomic_path(Path(folder) / shard_name(part)) as temporary:
        pq.write_table(
            table,
            temporary,
            row_group_size=ROW_GROUP,
            use_dictionary=["label"],
            write_statistics=["key"],
            compression={"key": "zstd", "label": "zstd", "vector": "none"},
        )


def write_manifest(folder: str | Path, about: Manifest, parts: int) -> ShardFolder:
    """Write the manifest of a folder whose shards are all there, and the list of skipped images.

    Args:
        folder: The folder.
        about: What is in it; the numbers are counted here.
        parts: Number of shards.

    Raises:
        ValueError: If a shard is damaged.
        FileNotFoundError: If one is missing.
    """
    folder = Path(folder)
    shards: dict[str, int] = {}
    skipped = 0
    with (
        atomic_path(folder / SKIPPED_FILE) as temporary,
        temporary.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file,
    ):
        writer = csv.writer(file)
        writer.writerow(["key", "reason"])
        for part in range(parts):
            path = folder / shard_name(part)
            try:
                read = pq.read_metadata(path)
            except ValueError as error:
                raise ValueError(
                    f"Expected {path} to be a whole shard, but {error}: remove it and run bgl "
                    "embed again"
                ) from error
            shards[path.name] = read.num_rows
            left_out = json.loads(read.metadata[SKIPPED])
            writer.writerows(left_out)
            skipped += len(left_out)
    whole = dataclasses.replace(about, count=sum(shards.values()), skipped=skipped, shards=shards)
    write_text(folder / MANIFEST_FILE, json.dumps(dataclasses.asdict(whole), indent=1) + "\n")
    return ShardFolder(folder)


def _text(text: str | None) -> str | None:
    """Write out the bytes of a name that are no UTF-8, which Arrow refuses."""
    return None if text is None else os.fsencode(text).decode(errors="backslashreplace")


def _block(table: pa.Table, about: Manifest) -> Block:
    keys = table["key"].to_pylist() if "key" in table.column_names else []
    labels = table["label"].to_pylist() if "label" in table.column_names else []
    vectors = np.empty((0, about.dim), about.dtype)
    if "vector" in table.column_names:
        column = table["vector"].combine_chunks()
        flat = column.flatten().to_numpy().copy()  # PyTorch wants memory that may be written
        vectors = flat.reshape(len(column), column.type.list_size)
        if vectors.shape[1] != about.dim or vectors.dtype.name != about.dtype:
            raise ValueError(f"it holds {describe(vectors)}, not {about.dim} x {about.dtype}")
    return Block(keys, labels, vectors)
